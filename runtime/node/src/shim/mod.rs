//! `berth-shim`, as the daemon sees it: `program` launches it, `lock` tells whether one lives,
//! `connection` speaks its protocol, and `end` ends one that does not exit by itself.

mod connection;
mod end;
mod lock;
mod program;

pub use self::{
    connection::{Connection, LAUNCHING, NoResponse, RESPONSE_LIMIT, greet},
    end::{KILLING, LEAVING, end, kill_unless_gone},
    lock::{claim_pin, ends_within, is_alive},
    program::{Placeholder, Program, Stalled, with_progress},
};
