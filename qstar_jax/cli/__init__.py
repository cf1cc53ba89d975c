"""The command `qstar`: one thin module per command, imported when called."""
