//! WebSocket, over which newer clients stream (KEP 4006).

mod serve;
pub(super) mod socket;
mod tunnel;

pub(super) use self::serve::respond;
