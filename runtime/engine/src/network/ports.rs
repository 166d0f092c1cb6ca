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
    /// Takes ports for a run: all that it wants, or none. What names no address of the host is published
    /// `at` these, with one port for all of them.
    ///
    /// # Errors
    /// Which one cannot be had, in dockerd's words.
    pub(crate) fn reserve(
        &self,
        id: &str,
        wanted: &[Mapping],
        at: &[IpAddr],
    ) -> Result<Vec<Published>, String> {
        let mut known = self.known();
        let mut chosen: Vec<Published> = Vec::new();
        for Mapping { port, host_ip, host_port } in wanted {
            let addresses = host_ip.as_ref().map_or(at, std::slice::from_ref);
            let places = |host_port| -> Vec<Published> {
                let place = |&host_ip| Published { port: *port, host_ip, host_port };
                addresses.iter().map(place).collect()
            };
            let number = match host_port {
                HostPort::Fixed(number) => known.check(&places(*number), &chosen).map(|()| *number),
                HostPort::Range(range) => known
                    .first_free(range.clone(), places, &chosen)
                    .ok_or_else(|| exhausted(&places(*range.end()))),
                HostPort::Any => known.any_free(port.protocol, places, &chosen),
            };
            chosen.extend(places(number?));
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
        protocol: Protocol,
        places: impl Fn(u16) -> Vec<Published>,
        chosen: &[Published],
    ) -> Result<u16, String> {
        let range = ephemeral();
        let start = match self.last.get(&protocol) {
            Some(last) if range.contains(last) && last < range.end() => last + 1,
            _ => *range.start(),
        };
        let behind = self.first_free(start..=*range.end(), &places, chosen);
        let found = behind.or_else(|| self.first_free(range.clone(), &places, chosen));
        let number = found.ok_or_else(|| exhausted(&places(*range.end())))?;
        self.last.insert(protocol, number);
        Ok(number)
    }

    fn first_free(
        &self,
        mut range: RangeInclusive<u16>,
        places: impl Fn(u16) -> Vec<Published>,
        chosen: &[Published],
    ) -> Option<u16> {
        range.find(|number| self.check(&places(*number), chosen).is_ok())
    }

    /// # Errors
    /// Another run has one of the places, or a program of the host.
    fn check(&self, places: &[Published], chosen: &[Published]) -> Result<(), String> {
        places.iter().try_for_each(|wanted| self.check_one(wanted, chosen))
    }

    fn check_one(&self, wanted: &Published, chosen: &[Published]) -> Result<(), String> {
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

/// The error where each port of a range is somebody's.
fn exhausted(places: &[Published]) -> String {
    let first = places.first();
    first.map(|place| refusal(place, "all ports are allocated")).unwrap_or_default()
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
    use std::net::Ipv6Addr;

    use super::*;

    const ANY: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED)];

    fn wanted(host_port: HostPort, host_ip: Option<&str>) -> [Mapping; 1] {
        let port = Port { number: 80, protocol: Protocol::Sctp };
        [Mapping { port, host_ip: host_ip.map(|text| text.parse().unwrap()), host_port }]
    }

    #[test]
    fn a_port_belongs_to_one_run() {
        let ports = Ports::default();
        let number = |id: &str, host_port, host_ip| {
            ports.reserve(id, &wanted(host_port, host_ip), &ANY).map(|all| all[0].host_port)
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
            |id: &str| ports.reserve(id, &wanted(HostPort::Any, None), &ANY).unwrap()[0].host_port;
        let first = number("a");
        assert_eq!(number("b"), first + 1);
        ports.release("b");
        assert_eq!(number("b"), first + 2);
        assert_eq!(published(&mappings(&ports.of("b"))), ports.of("b"));
    }
    #[test]
    fn a_port_is_the_same_one_in_both_families() {
        let ports = Ports::default();
        let both = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let reserve = |id: &str, host_ip, at: &[IpAddr]| {
            let number = |host_port| ports.reserve(id, &wanted(host_port, host_ip), at);
            number(HostPort::Range(80..=82)).map(|all| {
                all.iter().map(|one| (one.host_ip.is_ipv4(), one.host_port)).collect::<Vec<_>>()
            })
        };
        assert_eq!(reserve("a", Some("::"), &both).unwrap(), [(false, 80)]);
        assert_eq!(reserve("b", None, &both).unwrap(), [(true, 81), (false, 81)]);
        assert_eq!(reserve("c", None, &both[..1]).unwrap(), [(true, 80)]);
    }
}
