//! Published and exposed ports, from the maps of the API to checked mappings, and back to what
//! `docker ps` and `docker inspect` show.
//!
//! ```text
//! "80/tcp": [{"HostIp": "", "HostPort": "8080-8090"}]     the first free one of a range
//! "80/tcp": [{"HostPort": ""}]                            any free one
//! "80/tcp": null                                          none, or any with PublishAllPorts
//! ```

mod mapping;
mod show;

use std::{
    collections::BTreeSet,
    fmt,
    num::{IntErrorKind, ParseIntError},
    ops::RangeInclusive,
};

use berth_base::error::{Error, Kind, Result};

pub use self::{
    mapping::{HostPort, Mapping, PortBinding, PortBindings, mappings},
    show::{PortSummary, Published, for_inspect, for_list},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A port of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    pub number: u16,
    pub protocol: Protocol,
}

impl Protocol {
    /// In any case; tcp if none is named. `None` for one whose ports cannot be published.
    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "" | "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            "sctp" => Some(Self::Sctp),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.as_str())
    }
}

impl Port {
    /// Reads `80`, `80/udp` and ranges of them such as `80-90/tcp`.
    ///
    /// # Errors
    /// The reason, in the words of dockerd.
    pub fn parse_range(text: &str) -> Result<impl Iterator<Item = Self> + use<>, String> {
        if text.is_empty() {
            return Err("invalid port range: value is empty".to_owned());
        }
        let (numbers, protocol) = text.split_once('/').unwrap_or((text, ""));
        let range = parse_range(numbers)?;
        let protocol =
            Protocol::parse(protocol).ok_or_else(|| format!("invalid protocol: {protocol}"))?;
        Ok(range.map(move |number| Self { number, protocol }))
    }
}

/// Reads `80` or `80-90`.
fn parse_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let first = number(start).map_err(|why| format!("invalid start port '{start}': {why}"))?;
    let last = number(end).map_err(|why| format!("invalid end port '{end}': {why}"))?;
    if last < first {
        return Err(format!("invalid port range: {text}"));
    }
    Ok(first..=last)
}

fn number(text: &str) -> Result<u16, &'static str> {
    // Rust's parser takes a sign, Go's does not.
    if text.starts_with('+') {
        return Err("invalid syntax");
    }
    text.parse().map_err(|error: ParseIntError| match error.kind() {
        IntErrorKind::Empty => "value is empty",
        IntErrorKind::PosOverflow => "value out of range",
        _ => "invalid syntax",
    })
}

/// The exposed ports of a container or image: keys such as `80/tcp`.
///
/// # Errors
/// `InvalidArgument` with the first key that is not a port.
pub fn exposed<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<BTreeSet<Port>> {
    let mut ports = BTreeSet::new();
    for key in keys {
        ports.extend(Port::parse_range(key).map_err(|_| invalid(key))?);
    }
    Ok(ports)
}

fn invalid(specification: &str) -> Error {
    Error::invalid(format!("invalid port specification: \"{specification}\""))
}

/// The ports of a filter `publish` or `expose`, such as `80`, `80/udp` or `80-90`.
///
/// # Errors
/// `Internal` in the words of dockerd, which answers 500 here.
pub fn of_filter(key: &str, value: &str) -> Result<BTreeSet<Port>> {
    let internal = |message| Error::new(Kind::Internal, message);
    if value.contains(':') {
        return Err(internal(format!("filter for '{key}' should not contain ':': {value}")));
    }
    let ports = Port::parse_range(value);
    let ports = ports
        .map_err(|why| internal(format!("error while looking up for {key} {value}: {why}")))?;
    Ok(ports.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_and_written() {
        assert!(exposed(["80/what"]).is_err());
        let ports = exposed(["80-81/UDP", "7/sctp", "9"]).unwrap();
        let texts: Vec<String> = ports.iter().map(Port::to_string).collect();
        assert_eq!(texts, ["7/sctp", "9/tcp", "80/udp", "81/udp"]);
    }

    #[test]
    fn filters_name_ports_and_ranges() {
        assert_eq!(of_filter("publish", "80").unwrap(), exposed(["80/tcp"]).unwrap());
        assert_eq!(of_filter("expose", "80-82/tcp").unwrap().len(), 3);
        let message = |value| of_filter("publish", value).unwrap_err().message;
        assert_eq!(message("1:2"), "filter for 'publish' should not contain ':': 1:2");
        assert_eq!(
            message("x"),
            "error while looking up for publish x: invalid start port 'x': invalid syntax"
        );
    }
}
