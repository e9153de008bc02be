"""The leaderboard: gathered, ranked, asked, compared, shown."""
