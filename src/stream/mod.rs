//! What lasts: tunnels now.
//!
//! | file | does |
//! |---|---|
//! | [`tunnel`] | carries bytes both ways after a switch of protocols |

pub mod tunnel;
