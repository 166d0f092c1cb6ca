//! `linux/arm64/v8`: the platform that a request names.

use std::fmt;

use berth_image::Image;
use serde::Deserialize;

use crate::http::error::{Failure, Result};

/// The words that a platform of one word may be, as the Go compiler has them.
const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];
const ARCHITECTURES: [&str; 24] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    os: String,
    pub architecture: String,
    pub variant: String,
}

impl Platform {
    /// Parses what a query has; `None` if it names none.
    ///
    /// # Errors
    /// 400 in dockerd's words.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>> {
        if text.is_empty() {
            return Ok(None);
        }
        let parts: Vec<String> = text.split('/').map(str::to_ascii_lowercase).collect();
        let refused = || {
            Failure::bad_request(format!(
                "\"{text}\": cannot parse platform specifier: invalid argument"
            ))
        };
        let part = |index: usize| parts.get(index).cloned().unwrap_or_default();
        let is_plain = |part: &String| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        };
        if parts.len() > 3 || !parts.iter().all(is_plain) {
            return Err(refused());
        }
        let (os, architecture, variant) = match parts.len() {
            // One word is either.
            1 if SYSTEMS.contains(&part(0).as_str()) => {
                (part(0), own_architecture().to_owned(), String::new())
            }
            1 => ("linux".to_owned(), part(0), String::new()),
            _ => (part(0), part(1), part(2)),
        };
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            "i386" => "386".to_owned(),
            _ => architecture,
        };
        if parts.len() == 1 && !ARCHITECTURES.contains(&architecture.as_str()) {
            return Err(Failure::bad_request(format!(
                "\"{text}\": unknown operating system or architecture: invalid argument"
            )));
        }
        // The only variant of arm64 that goes without saying.
        let variant = match (architecture.as_str(), variant.as_str()) {
            ("arm64", "v8") => String::new(),
            _ => variant,
        };
        Ok(Some(Self { os, architecture, variant }))
    }

    /// Parses `{"os":…,"architecture":…}`, which some queries have; `None` if there is none.
    ///
    /// # Errors
    /// 400 for what is no such document.
    pub(crate) fn of_document(text: &str) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Document {
            os: String,
            architecture: String,
            #[serde(default)]
            variant: String,
        }
        if text.is_empty() {
            return Ok(None);
        }
        let document: Document = serde_json::from_str(text)
            .map_err(|error| Failure::bad_request(format!("failed to parse platform: {error}")))?;
        let Document { os, architecture, variant } = document;
        let parts = [os, architecture, variant];
        Self::parse(parts.join("/").trim_end_matches('/'))
    }

    /// That of an image.
    pub(crate) fn of(image: &Image) -> Self {
        Self {
            os: image.config.os().to_string(),
            architecture: image.config.architecture().to_string(),
            variant: String::new(),
        }
    }

    pub(crate) fn is_linux(&self) -> bool {
        self.os == "linux"
    }

    /// Whether it is this machine's.
    pub(crate) fn is_own(&self) -> bool {
        (self.os.as_str(), self.architecture.as_str()) == ("linux", own_architecture())
    }

    pub(crate) fn is_of(&self, image: &Image) -> bool {
        let own = Self::of(image);
        (&self.os, &self.architecture) == (&own.os, &own.architecture)
    }
}

/// This machine's architecture as images name it.
pub(crate) fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_str() {
            "" => Ok(()),
            variant => write!(f, "/{variant}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_in_their_forms() {
        for (text, shown) in [
            ("linux/arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("aarch64", "linux/arm64"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().unwrap().to_string(), shown);
        }
        let text = "\"nope/x/y/z\": cannot parse platform specifier: invalid argument";
        assert_eq!(Platform::parse("nope/x/y/z").unwrap_err().message, text);
        let text = "\"foo\": unknown operating system or architecture: invalid argument";
        assert_eq!(Platform::parse("foo").unwrap_err().message, text);
        assert_eq!(Platform::parse("freebsd").unwrap().unwrap().os, "freebsd");
        assert_eq!(Platform::parse("").unwrap(), None);
    }
}
