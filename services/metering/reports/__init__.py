"""Reports: costs, forecasts and SQL out, the FOCUS export, and the tables that costs are joined with."""
