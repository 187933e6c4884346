//! Media commands.
