from unleak.cli import app

app(prog_name="unleak")
