//! The ids of sandboxes and containers: 64 hexadecimal digits each. They are types of their own, so
//! that one is never taken for the other.

use std::fmt;

use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// The id of a pod sandbox.
    SandboxId
);
id!(
    /// The id of a container.
    ContainerId
);

impl SandboxId {
    pub fn random() -> Self {
        Self(random_hex(32))
    }
}

impl ContainerId {
    pub fn random() -> Self {
        Self(random_hex(32))
    }
}

/// `bytes` random bytes in hexadecimal.
pub fn random_hex(bytes: usize) -> String {
    random_bytes(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `count` bytes from the kernel's random number generator.
///
/// # Panics
/// Never: getrandom(2) needs no descriptor, and fails only for a bad address or an unknown flag.
pub fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let mut filled = 0;
    while filled < count {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            // Just after boot it waits for the kernel to have gathered enough, and a signal can
            // interrupt that.
            Err(Errno::INTR) => {}
            Err(errno) => unreachable!("getrandom: {errno}"),
        }
    }
    bytes
}
