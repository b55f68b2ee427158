"""What every HTML page of moejax is made of: charts, heat maps, tables, and a page that loads nothing."""
