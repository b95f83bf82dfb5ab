//! TrailDB.
