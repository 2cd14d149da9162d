"""The report as one HTML file to send: tables, figures, studies, spec and provenance, without a server or a network."""
