"""Views of an Estimate: text for a terminal, JSON for programs, HTML for a notebook. No formula lives here."""
