//! The contract between the daemon and the process that keeps a container.
//!
//! `berthd` writes a directory (`layout`, `spec`), launches `berth-shim run --dir DIR`, reads one
//! line (`record::Report`), and from then on speaks packets over a socket (`protocol`). What
//! outlives either side is a file (`record`). Nothing here changes the process that calls it: the daemon
//! may import all of this. Both fill volumes with what an image has in their place (`copy_tree`).
//!
//! # What two builds of berth owe one another
//!
//! A container outlives the daemon that started it. After an upgrade a new daemon finds shims and
//! files of an older build, and after a downgrade it is the other way round; both must go on without
//! a container noticing. So a change of this crate, or of a record that the daemon keeps for
//! itself, is one of these.
//!
//! **It may simply be made, and no version changes:**
//! - A new field that has a default (`#[serde(default)]`) and that the other side may ignore. Nobody
//!   refuses fields that it does not know: `deny_unknown_fields` has no place in a record.
//! - A new file that an older build leaves alone.
//!
//! **`version::VERSION` goes up by one, with a line in the table there:**
//! - A new `Call`, or a new field of a request that must not be ignored. The daemon asks which
//!   version it has in common with the shim, and does not send what that one lacks.
//! - Another form of a document that comes with a call. The daemon writes the older form for as long
//!   as it speaks the older version, and the shim reads it as well.
//! - A new variant of an enum, where an older build may have to read it: serde refuses variants that
//!   it does not know. What an older build can do without becomes a field instead.
//!
//! **The version of the layout goes up** (`berth_base::layout`), and older daemons refuse the root:
//! - A file, or the name of one, means something else than before.
//! - A record has a new variant that an older daemon needs in order to remove what it finds.
//!
//! **Never**, so that any two builds can at least tell how a container is, and end it:
//! - A field loses its meaning, or becomes required.
//! - Another form of `Call::Hello`, `Signal`, `Attach`, `Resize`, `CloseStdin` and `ReopenLog`, of
//!   the lock, of `started.json` and of `exit.json`, or of the command line of the shim.
//!
//! A daemon speaks the versions from `version::OLDEST` to `version::VERSION`. With a shim that has
//! none of these in common with it, statuses, logs, attach, update, stop and removal work, and an
//! exec is refused in a sentence that says why.
//!
//! `tests/contract` keeps this: it holds records and packets of each version, which every later
//! build has to read, and names the builds whose programs the tests of an upgrade run.
#![forbid(unsafe_code)]

pub mod copy_tree;
pub mod exec_request;
pub mod layout;
pub mod protocol;
pub mod record;
pub mod spec;
pub mod timestamp;
pub mod version;

#[cfg(test)]
mod tests {
    use berth_contract::check;

    use crate::{
        exec_request::ExecRequest,
        protocol::{Packet, Request},
        record::{Exited, Started},
        spec::{Pin, Process, Spec},
    };

    #[test]
    fn records_and_packets_of_other_builds_are_read() {
        check::<Spec>("spec.json");
        check::<Pin>("pin.json");
        check::<Started>("started.json");
        check::<Exited>("exit.json");
        check::<Exited>("exit_not_started.json");
        check::<ExecRequest>("exec.json");
        check::<Process>("exec_process.json");
        check::<Vec<Request>>("requests.json");
        check::<Vec<Packet>>("replies.json");
    }
}
