"""What runs leave behind, as tables, plots and pages."""
