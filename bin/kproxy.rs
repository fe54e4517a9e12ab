//! Doorway.
fn main(){}
