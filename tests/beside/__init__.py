"""What works beside other libraries, where they are installed; `scripts/beside.py` installs them and runs this."""
