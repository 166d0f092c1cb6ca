//! A comparison of two servers of the Docker Engine API: the same requests and the same command
//! lines go to both, and what they answer is made comparable and compared.
//!
//! `scenario` reads what is to be asked, `side` asks one of the two, `http` is the wire, `normal`
//! takes out of an answer what differs from run to run, `compare` finds what is left, and which of
//! it has a reason.

mod compare;
mod http;
mod images;
mod normal;
mod scenario;
mod side;

pub use compare::{Difference, Known, differences};
pub use images::archive;
pub use scenario::{Scenario, Step, read};
pub use side::{Answers, Side};
