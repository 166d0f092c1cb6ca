//! What `EXPOSE` names: `80`, `80/udp`, `8000-8010`. dockerd takes what `docker run -p` takes, and
//! looks only at the port of the container.

use std::net::IpAddr;

use crate::error::{Error, Result};

/// The ports of a specification, as `80/tcp`.
///
/// # Errors
/// In dockerd's words.
pub(crate) fn ports(specification: &str) -> Result<Vec<String>> {
    let mut parts = specification.rsplitn(3, ':');
    let container = parts.next().unwrap_or_default();
    let host = parts.next().unwrap_or_default();
    let address = parts.next().unwrap_or_default();
    let (port, protocol) = match container.split_once('/').unwrap_or((container, "")) {
        ("", _) => ("", ""),
        (port, "") => (port, "tcp"),
        other => other,
    };
    check_address(address)?;
    if port.is_empty() {
        return Err(Error(format!("no port specified: {specification}<empty>")));
    }
    let (first, last) =
        range(port).ok_or_else(|| Error(format!("invalid containerPort: {port}")))?;
    if !host.is_empty() {
        let (host_first, host_last) =
            range(host).ok_or_else(|| Error(format!("invalid hostPort: {host}")))?;
        if last != first && last - first != host_last - host_first {
            return Err(Error(format!(
                "invalid ranges specified for container and host Ports: {port} and {host}"
            )));
        }
    }
    let lower = protocol.to_lowercase();
    if !matches!(lower.as_str(), "tcp" | "udp" | "sctp") {
        return Err(Error(format!("invalid proto: {protocol}")));
    }
    Ok((first..=last).map(|port| format!("{port}/{lower}")).collect())
}

fn check_address(address: &str) -> Result<()> {
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    match bare.is_empty() || bare.parse::<IpAddr>().is_ok() {
        true => Ok(()),
        false => Err(Error(format!("invalid IP address: {bare}"))),
    }
}

fn range(ports: &str) -> Option<(u16, u16)> {
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten()
    };
    let mut parts = ports.split('-');
    let first = number(parts.next()?)?;
    // A third part does not count.
    let last = match parts.next() {
        Some(last) => number(last)?,
        None => first,
    };
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges() {
        for (specification, expected) in [
            ("80", Ok(&["80/tcp"][..])),
            ("80/UDP", Ok(&["80/udp"])),
            ("80-82/udp", Ok(&["80/udp", "81/udp", "82/udp"])),
            ("127.0.0.1:90:80", Ok(&["80/tcp"])),
            ("[::1]:90:80", Ok(&["80/tcp"])),
            ("080", Ok(&["80/tcp"])),
            ("x", Err("invalid containerPort: x")),
            ("70000", Err("invalid containerPort: 70000")),
            ("9-8", Err("invalid containerPort: 9-8")),
            ("80/foo", Err("invalid proto: foo")),
            ("/tcp", Err("no port specified: /tcp<empty>")),
            ("x:90:80", Err("invalid IP address: x")),
            ("x:80", Err("invalid hostPort: x")),
        ] {
            let expected = expected
                .map(|ports| ports.iter().map(|port| (*port).to_owned()).collect())
                .map_err(Error::new);
            assert_eq!(ports(specification), expected, "{specification}");
        }
    }
}
