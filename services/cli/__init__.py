"""The `headwater` command: runs the services, and uses them.

Hears   nothing
Tells   nothing
Serves  people and scripts, through a shell
Owns    the keys it saves in the data folder, `keys/<tenant>.key`
"""
