//! Identities as types: 64 hexadecimal digits each, so that a sandbox is never taken for a container.

use std::{fmt, fs::File, io::Read};

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub(crate) struct $name(String);

        impl $name {
            pub(crate) fn as_str(&self) -> &str {
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
    /// A pod sandbox.
    SandboxId
);
id!(
    /// A container.
    ContainerId
);

impl SandboxId {
    pub(crate) fn random() -> Self {
        Self(random_hex(32))
    }
}

impl ContainerId {
    pub(crate) fn random() -> Self {
        Self(random_hex(32))
    }
}

/// `bytes` random bytes in hexadecimal.
///
/// # Panics
/// As `random_bytes`.
pub(crate) fn random_hex(bytes: usize) -> String {
    random_bytes(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// # Panics
/// When /dev/urandom cannot be read, without which nothing here can be told apart.
pub(crate) fn random_bytes(count: usize) -> Vec<u8> {
    let mut buffer = vec![0; count];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut buffer))
        .expect("/dev/urandom gives random bytes");
    buffer
}
