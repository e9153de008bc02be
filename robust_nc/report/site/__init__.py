"""The leaderboard as a folder of static pages."""
