"""Files written whole or not at all, and files of others read with care."""
