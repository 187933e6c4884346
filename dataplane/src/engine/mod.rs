//! Storage engines.
