"""What people look at: records drawn as tables and curves."""
