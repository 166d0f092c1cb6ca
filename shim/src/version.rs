//! Which versions of the protocol there are, and which one two builds of berth speak with one
//! another.
//!
//! | Version | What a daemon has to know |
//! |---|---|
//! | 1 | The file of an exec lies on a disk. No longer spoken. |
//! | 2 | The file of an exec is in memory, and is a whole `spec::Process`. |
//! | 3 | It is an `ExecRequest`, which the shim merges with the first process of the container. |
//! | 4 | `Overrides::capabilities` of it counts. |
//!
//! What makes a new version, and what does not, is the contract in the documentation of this crate.

use std::{fmt, ops::RangeInclusive};

/// The version of this build.
pub const VERSION: u32 = 4;
/// The oldest version that this build still speaks. As a daemon it asks in the words of that
/// version; as a shim it understands them.
pub const OLDEST: u32 = 2;

/// Two builds that have no version in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoCommonVersion {
    shim: RangeInclusive<u32>,
}

/// The version in which the daemon speaks to a shim: the newest that both know. `shim` is what that
/// shim has answered to `Call::Hello`, its `oldest` and its `version`.
///
/// # Errors
/// There is none. The shim still understands everything but execs.
pub fn common(shim: RangeInclusive<u32>) -> Result<u32, NoCommonVersion> {
    let newest = VERSION.min(*shim.end());
    if newest >= OLDEST && shim.contains(&newest) {
        Ok(newest)
    } else {
        Err(NoCommonVersion { shim })
    }
}

impl fmt::Display for NoCommonVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = if *self.shim.end() < OLDEST { "an older" } else { "a newer" };
        write!(
            f,
            "its shim was started by {age} berthd, and takes execs in version {} to {} of the \
             protocol, where this one speaks {OLDEST} to {VERSION}; the container runs on and can \
             be stopped, and takes execs again once it is started anew",
            self.shim.start(),
            self.shim.end(),
        )
    }
}

impl std::error::Error for NoCommonVersion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_both_know_is_spoken() {
        for (shim, spoken) in [
            // Shims of before there was a negotiation speak one version.
            (1..=1, None),
            (2..=2, Some(2)),
            (3..=3, Some(3)),
            (OLDEST..=VERSION, Some(VERSION)),
            // A later build speaks to this one for as long as it has not given up its version.
            (VERSION..=VERSION + 4, Some(VERSION)),
            (VERSION + 1..=VERSION + 4, None),
        ] {
            assert_eq!(common(shim.clone()).ok(), spoken, "{shim:?}");
        }
    }

    #[test]
    fn a_refusal_says_whose_age_it_is_and_what_to_do() {
        let text = |shim| common(shim).unwrap_err().to_string();
        assert!(text(1..=1).contains("an older berthd"));
        let newer = text(98..=99);
        assert!(newer.contains("a newer berthd, and takes execs in version 98 to 99"), "{newer}");
        assert!(newer.contains("started anew"), "{newer}");
    }
}
