//! The producer: records in, one outcome for each.
//!
//! What stands here so far is its pure core, [`gather`]: which records go out next, and what an answer means for them.

pub mod gather;
