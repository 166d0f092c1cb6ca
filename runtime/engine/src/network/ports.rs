//! Which ports of the host a run gets. Those of the engine's own runs are known here; whether a pod
//! has one is known when berth-bridge maps it, whose answer is the one that counts.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    ops::RangeInclusive,
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_cni::PortMapping;

use crate::ports::{HostPort, Mapping, Port, Protocol, Published};

/// What the kernel has when it does not say.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// The ports of all runs, by the container's id.
#[derive(Debug, Default)]
pub(crate) struct Ports(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    taken: BTreeMap<String, Vec<Published>>,
    /// What was given last for any free port.
    last: BTreeMap<Protocol, u16>,
}

impl Ports {
    /// Takes ports for a run: all that it wants, or none.
    ///
    /// # Errors
    /// Which one cannot be had, in dockerd's words.
    pub(crate) fn reserve(&self, id: &str, wanted: &[Mapping]) -> Result<Vec<Published>, String> {
        let mut known = self.known();
        let mut chosen: Vec<Published> = Vec::new();
        for mapping in wanted {
            // Only IPv4: the bridge has no other addresses.
            for host_ip in mapping.addresses(Ipv4Addr::UNSPECIFIED.into(), false) {
                let port = mapping.port;
                let at = |host_port| Published { port, host_ip, host_port };
                let found = match &mapping.host_port {
                    HostPort::Fixed(number) => known.check(&at(*number), &chosen).map(|()| *number),
                    HostPort::Range(range) => known
                        .first_free(range.clone(), at, &chosen)
                        .ok_or_else(|| refusal(&at(*range.end()), "all ports are allocated")),
                    HostPort::Any => known.any_free(at, &chosen),
                };
                chosen.push(at(found?));
            }
        }
        known.taken.insert(id.to_owned(), chosen.clone());
        Ok(chosen)
    }

    /// Knows the ports of a run that an earlier daemon began.
    pub(crate) fn adopt(&self, id: &str, mappings: &[PortMapping]) {
        self.known().taken.insert(id.to_owned(), published(mappings));
    }

    pub(crate) fn release(&self, id: &str) {
        self.known().taken.remove(id);
    }

    /// The ports of a run.
    pub(crate) fn of(&self, id: &str) -> Vec<Published> {
        self.known().taken.get(id).cloned().unwrap_or_default()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn any_free(
        &mut self,
        at: impl Fn(u16) -> Published,
        chosen: &[Published],
    ) -> Result<u16, String> {
        let range = ephemeral();
        let protocol = at(0).port.protocol;
        let start = match self.last.get(&protocol) {
            Some(last) if range.contains(last) && last < range.end() => last + 1,
            _ => *range.start(),
        };
        let behind = self.first_free(start..=*range.end(), &at, chosen);
        let found = behind.or_else(|| self.first_free(range.clone(), &at, chosen));
        let number = found.ok_or_else(|| refusal(&at(*range.end()), "all ports are allocated"))?;
        self.last.insert(protocol, number);
        Ok(number)
    }

    fn first_free(
        &self,
        mut range: RangeInclusive<u16>,
        at: impl Fn(u16) -> Published,
        chosen: &[Published],
    ) -> Option<u16> {
        range.find(|number| self.check(&at(*number), chosen).is_ok())
    }

    /// # Errors
    /// Another run has the port, or a program of the host.
    fn check(&self, wanted: &Published, chosen: &[Published]) -> Result<(), String> {
        let overlaps = |other: &Published| {
            other.host_port == wanted.host_port
                && other.port.protocol == wanted.port.protocol
                && other.host_ip.is_ipv4() == wanted.host_ip.is_ipv4()
                && (other.host_ip == wanted.host_ip
                    || other.host_ip.is_unspecified()
                    || wanted.host_ip.is_unspecified())
        };
        if self.taken.values().flatten().chain(chosen).any(overlaps) {
            return Err(refusal(wanted, "port is already allocated"));
        }
        bind(wanted).map_err(|error| {
            let Published { host_ip, host_port, port } = wanted;
            let why = match error.kind() {
                io::ErrorKind::AddrInUse => "address already in use".to_owned(),
                io::ErrorKind::AddrNotAvailable => "cannot assign requested address".to_owned(),
                _ => error.to_string(),
            };
            format!(
                "failed to bind host port for {}/{}: {why}",
                SocketAddr::new(*host_ip, *host_port),
                port.protocol.as_str()
            )
        })
    }
}

/// dockerd's words for a port that somebody else has.
pub(crate) fn refusal(wanted: &Published, why: &str) -> String {
    format!("Bind for {} failed: {why}", SocketAddr::new(wanted.host_ip, wanted.host_port))
}

/// Binds a socket there for a moment, which fails where a program of the host has done so.
fn bind(wanted: &Published) -> io::Result<()> {
    let address = SocketAddr::new(wanted.host_ip, wanted.host_port);
    match wanted.port.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
        Protocol::Sctp => Ok(()),
    }
}

/// Where the kernel takes ports from that nobody chose (ip(7), ip_local_port_range).
fn ephemeral() -> RangeInclusive<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_whitespace().filter_map(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) if first <= last => first..=last,
        _ => EPHEMERAL,
    }
}

/// What berth-bridge is told.
pub(crate) fn mappings(published: &[Published]) -> Vec<PortMapping> {
    let mapping = |one: &Published| PortMapping {
        host_port: one.host_port,
        container_port: one.port.number,
        protocol: match one.port.protocol {
            Protocol::Tcp => berth_cni::Protocol::Tcp,
            Protocol::Udp => berth_cni::Protocol::Udp,
            Protocol::Sctp => berth_cni::Protocol::Sctp,
        },
        host_ip: one.host_ip.to_string(),
    };
    published.iter().map(mapping).collect()
}

/// What berth-bridge was told.
pub(crate) fn published(mappings: &[PortMapping]) -> Vec<Published> {
    let one = |mapping: &PortMapping| Published {
        port: Port {
            number: mapping.container_port,
            protocol: match mapping.protocol {
                berth_cni::Protocol::Tcp => Protocol::Tcp,
                berth_cni::Protocol::Udp => Protocol::Udp,
                berth_cni::Protocol::Sctp => Protocol::Sctp,
            },
        },
        host_ip: mapping.host_ip.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        host_port: mapping.host_port,
    };
    mappings.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(host_port: HostPort, host_ip: Option<&str>) -> [Mapping; 1] {
        let port = Port { number: 80, protocol: Protocol::Sctp };
        [Mapping { port, host_ip: host_ip.map(|text| text.parse().unwrap()), host_port }]
    }

    #[test]
    fn a_port_belongs_to_one_run() {
        let ports = Ports::default();
        let number = |id: &str, host_port, host_ip| {
            ports.reserve(id, &wanted(host_port, host_ip)).map(|all| all[0].host_port)
        };
        assert_eq!(number("a", HostPort::Fixed(80), None), Ok(80));
        let refused = Err("Bind for 0.0.0.0:80 failed: port is already allocated".to_owned());
        assert_eq!(number("b", HostPort::Fixed(80), None), refused);
        assert!(number("b", HostPort::Fixed(80), Some("127.0.0.1")).is_err());
        assert_eq!(number("b", HostPort::Range(80..=81), None), Ok(81));
        assert!(number("c", HostPort::Range(80..=81), None).is_err());
        ports.release("a");
        assert_eq!(number("c", HostPort::Fixed(80), Some("127.0.0.1")), Ok(80));
        assert_eq!(number("d", HostPort::Fixed(80), Some("127.0.0.2")), Ok(80));
    }

    #[test]
    fn any_port_is_another_one_each_time() {
        let ports = Ports::default();
        let number =
            |id: &str| ports.reserve(id, &wanted(HostPort::Any, None)).unwrap()[0].host_port;
        let first = number("a");
        assert_eq!(number("b"), first + 1);
        ports.release("b");
        assert_eq!(number("b"), first + 2);
        assert_eq!(published(&mappings(&ports.of("b"))), ports.of("b"));
    }
}
