//! What the engine writes for this program, and which answer follows from it. Nothing here reads or
//! sends.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
};

use serde::Deserialize;

use crate::wire::{A, AAAA, Data, PTR};

/// `networks/ID.json`: a user-defined network.
#[derive(Debug, Deserialize)]
pub(crate) struct Network {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) members: Vec<Member>,
}

/// A running container on a network.
#[derive(Debug, Deserialize)]
pub(crate) struct Member {
    /// The container's name, then its short id and aliases on this network.
    pub(crate) names: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
}

/// `containers/ID.json`: one that asks.
#[derive(Debug, Deserialize)]
pub(crate) struct Asker {
    /// The file that its network namespace is pinned at.
    pub(crate) namespace: PathBuf,
    /// The ids of its networks, first the one whose addresses go first.
    pub(crate) networks: Vec<String>,
    /// Names that only this container knows, each for another name.
    #[serde(default)]
    pub(crate) links: BTreeMap<String, String>,
    /// Who is asked for all other names, in this order. None for one that is on internal networks only.
    #[serde(default)]
    pub(crate) resolvers: Vec<Resolver>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Resolver {
    pub(crate) address: IpAddr,
    #[serde(default)]
    pub(crate) from: From,
}

/// The network namespace that a resolver is asked from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum From {
    #[default]
    Container,
    /// For a resolver on the host's loopback.
    Host,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) networks: BTreeMap<String, Network>,
    pub(crate) askers: BTreeMap<String, Asker>,
}

impl Table {
    /// The records for a question of a container; `None` when the name is none of its networks', so
    /// that others are asked. `turn` chooses which of several addresses is first.
    pub(crate) fn look_up(
        &self,
        asker: &str,
        name: &str,
        kind: u16,
        turn: usize,
    ) -> Option<Vec<Data>> {
        let asker = self.askers.get(asker)?;
        if kind == PTR {
            let address = reverse(name)?;
            return self.name_of(asker, address).map(|name| vec![Data::Name(name)]);
        }
        let mut addresses = self.addresses(asker, name)?;
        addresses.retain(|address| match kind {
            A => address.is_ipv4(),
            AAAA => address.is_ipv6(),
            _ => false,
        });
        let length = addresses.len().max(1);
        addresses.rotate_left(turn % length);
        Some(addresses.into_iter().map(Data::Address).collect())
    }

    /// All addresses of a name on the first network that has it, as dockerd answers.
    fn addresses(&self, asker: &Asker, name: &str) -> Option<Vec<IpAddr>> {
        let linked = asker.links.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
        let name = linked.map_or(name, |(_, own)| own.as_str());
        self.networks_of(asker).find_map(|network| {
            let within = name
                .len()
                .checked_sub(network.name.len() + 1)
                .filter(|dot| name.as_bytes().get(*dot) == Some(&b'.'))
                .filter(|dot| {
                    name.as_bytes()[dot + 1..].eq_ignore_ascii_case(network.name.as_bytes())
                })
                .map(|dot| &name.as_bytes()[..dot]);
            let found: Vec<IpAddr> = network
                .members
                .iter()
                .filter(|member| {
                    member.names.iter().any(|own| {
                        own.eq_ignore_ascii_case(name)
                            || within.is_some_and(|name| own.as_bytes().eq_ignore_ascii_case(name))
                    })
                })
                .flat_map(|member| member.addresses.iter().copied())
                .collect();
            (!found.is_empty()).then_some(found)
        })
    }

    fn name_of(&self, asker: &Asker, address: IpAddr) -> Option<String> {
        self.networks_of(asker).find_map(|network| {
            let member =
                network.members.iter().find(|member| member.addresses.contains(&address))?;
            Some(format!("{}.{}", member.names.first()?, network.name))
        })
    }

    fn networks_of(&self, asker: &Asker) -> impl Iterator<Item = &Network> {
        asker.networks.iter().filter_map(|id| self.networks.get(id))
    }
}

/// The address of a name below `in-addr.arpa` or `ip6.arpa`.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let turned: Vec<&str> = octets.rsplit('.').collect();
        return turned.join(".").parse().ok().map(IpAddr::V4);
    }
    let nibbles: Vec<&str> = name.strip_suffix(".ip6.arpa")?.rsplit('.').collect();
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| nibble.len() != 1) {
        return None;
    }
    let bits = u128::from_str_radix(&nibbles.concat(), 16).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let networks = r#"{
            "back": {"name": "backend", "members": [
                {"names": ["web", "c1", "www"], "addresses": ["10.1.0.2", "fd00::2"]},
                {"names": ["db", "c2", "www"], "addresses": ["10.1.0.3"]}]},
            "front": {"name": "frontend", "members": [
                {"names": ["lone"], "addresses": ["10.2.0.2"]}]}}"#;
        let askers = r#"{
            "c1": {"namespace": "/n1", "networks": ["back"], "links": {"store": "db"}},
            "c3": {"namespace": "/n3", "networks": ["front"]}}"#;
        Table {
            networks: serde_json::from_str(networks).unwrap(),
            askers: serde_json::from_str(askers).unwrap(),
        }
    }

    fn ask(asker: &str, name: &str, kind: u16, turn: usize) -> Option<Vec<String>> {
        let data = table().look_up(asker, name, kind, turn)?;
        Some(
            data.iter()
                .map(|data| match data {
                    Data::Address(address) => address.to_string(),
                    Data::Name(name) => name.clone(),
                })
                .collect(),
        )
    }

    #[test]
    fn names_are_those_of_the_askers_networks() {
        let cases: [(&str, &str, u16, Option<&[&str]>); 12] = [
            ("c1", "db", A, Some(&["10.1.0.3"])),
            ("c1", "db.backend", A, Some(&["10.1.0.3"])),
            ("c1", "db.frontend", A, None),
            ("c1", "db", AAAA, Some(&[])),
            ("c1", "web", AAAA, Some(&["fd00::2"])),
            ("c1", "db", 15, Some(&[])),
            ("c1", "store", A, Some(&["10.1.0.3"])),
            ("c2", "store", A, None),
            ("c1", "lone", A, None),
            ("c3", "lone", A, Some(&["10.2.0.2"])),
            ("c3", "2.0.1.10.in-addr.arpa", PTR, None),
            ("c1", "2.0.1.10.in-addr.arpa", PTR, Some(&["web.backend"])),
        ];
        for (asker, name, kind, expected) in cases {
            let expected = expected.map(|all| all.iter().map(ToString::to_string).collect());
            assert_eq!(ask(asker, name, kind, 0), expected, "{asker} {name} {kind}");
        }
    }

    #[test]
    fn an_alias_of_several_goes_round() {
        assert_eq!(ask("c1", "www", A, 0).unwrap(), ["10.1.0.2", "10.1.0.3"]);
        assert_eq!(ask("c1", "www", A, 1).unwrap(), ["10.1.0.3", "10.1.0.2"]);
    }

    #[test]
    fn addresses_are_read_backwards() {
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(reverse(six), Some("fd00::2".parse().unwrap()));
        for wrong in ["in-addr.arpa", "1.2.3.in-addr.arpa", "x.ip6.arpa", "web", ""] {
            assert_eq!(reverse(wrong), None, "{wrong}");
        }
    }
}
