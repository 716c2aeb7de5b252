"""`unleak app`: the rooms of the command line as one page in a browser.

It has no logic of its own. A room's handler calls the functions that its commands call, and shows the page that they
write. `desk.py` draws for all who have the page open, one job after the other; `page.py` and one file for each room
say what stands where. Nothing of this package is imported before the command runs.
"""
