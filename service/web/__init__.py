"""HTTP words only: what a request says, and how an answer is put. Rules and SQL are below."""
