//! The node's rules: one table, made once, of which a pod only adds and removes elements.
//!
//! ```text
//! table inet berth {
//!   set networks4, networks6   pods' networks that are masqueraded when they leave
//!   set mapped4, mapped6       networks of pods that have ports of the host, and 127.0.0.0/8
//!   map ports4, ports6         protocol . port            : address . port of a pod
//!   map ports4_at, ports6_at   address . protocol . port  : the same, for one address of the host
//!   chain prerouting           to an address of the host: jump hostports
//!   chain output               the same, for what the host itself sends
//!   chain hostports            dnat to the pod that the maps name
//!   chain postrouting          masquerade what leaves, and what would come back another way than it went
//!   chain loopback             drop what claims to be of 127.0.0.0/8 and comes from outside
//! }
//! ```
//!
//! A network is one element, which its first pod adds and nobody removes. A mapping is one element of its pod.

use std::net::IpAddr;

use berth_cni::{Error, code};
use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::{
    NetfilterProtoFamily,
    nftables::{
        Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate, InetHookNumber,
        ListAttribute, Lookup, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage,
        SetAttribute, SetFlags, SetMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
    },
};

use crate::nft::{Element, Table};

pub(crate) const NODE: Table = Table { family: NetfilterProtoFamily::Inet, name: "berth" };
/// What is bridged never meets `inet`.
pub(crate) const BRIDGED: Table = Table { family: NetfilterProtoFamily::Bridge, name: "berth" };

pub(crate) const PORT_MAPS: [&str; 4] = ["ports4", "ports4_at", "ports6", "ports6_at"];
/// Ports of a bridge that are guarded, and with which MAC addresses.
pub(crate) const GUARD_SETS: [&str; 2] = ["guarded", "macs"];

/// nft's own numbers: data types by their ids, six bits each where they are joined; priorities of hooks.
mod nft {
    pub(super) const IPV4: u32 = 7;
    pub(super) const IPV6: u32 = 8;
    pub(super) const ETHER: u32 = 9;
    pub(super) const PROTOCOL: u32 = 12;
    pub(super) const PORT: u32 = 13;
    pub(super) const IFNAME: u32 = 41;

    pub(super) const fn joined(types: &[u32]) -> u32 {
        let (mut all, mut index) = (0, 0);
        while index < types.len() {
            all = all << 6 | types[index];
            index += 1;
        }
        all
    }

    pub(super) const RAW: i32 = -300;
    pub(super) const DSTNAT: i32 = -100;
    pub(super) const SRCNAT: i32 = 100;
}

/// Linux': of headers, of the route of an address, of what was translated.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const LINK: u32 = 0;
const RTN_LOCAL: u32 = 2;
const IPS_DST_NAT: u32 = 0x20;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NOT_IN: u32 = 1;
const NF_DROP: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;
/// Of an interface's name in a rule.
pub(crate) const IFNAMSIZ: usize = 16;

/// One of the two families of addresses.
#[derive(Clone, Copy, Debug)]
struct Family {
    version: char,
    number: u8,
    kind: u32,
    size: u32,
    source: u32,
    destination: u32,
}

const FAMILIES: [Family; 2] = [
    Family { version: '4', number: NFPROTO_IPV4, kind: nft::IPV4, size: 4, source: 12, destination: 16 },
    Family { version: '6', number: NFPROTO_IPV6, kind: nft::IPV6, size: 16, source: 8, destination: 24 },
];

/// Masquerades what leaves `network`; success when that is so already.
pub(crate) fn masquerade(network: IpNet) -> Result<(), Error> {
    hold(pick(network.addr(), ["networks4", "networks6"]), network)
}

pub(crate) fn is_masqueraded(network: IpNet) -> Result<bool, Error> {
    let set = pick(network.addr(), ["networks4", "networks6"]);
    NODE.has(set, bytes(network.network())).map_err(|errno| failed("read the nftables set", errno))
}

/// Lets pods of `network` answer what comes through ports of the host, whoever asks.
pub(crate) fn allow_mapped(network: IpNet) -> Result<(), Error> {
    let set = pick(network.addr(), ["mapped4", "mapped6"]);
    hold(set, network)?;
    match network {
        // From the host itself, by localhost.
        IpNet::V4(_) => hold(set, IpNet::new_assert([127, 0, 0, 0].into(), 8)),
        IpNet::V6(_) => Ok(()),
    }
}

fn hold(set: &'static str, network: IpNet) -> Result<(), Error> {
    let has = NODE.has(set, bytes(network.network())).map_err(|errno| failed("read the nftables set", errno))?;
    if has {
        return Ok(());
    }
    match NODE.adding(&interval(set, network), |elements| NODE.add(elements)) {
        // Part of it is in the set as another network: then that much is done already.
        Ok(()) | Err(nix::libc::EEXIST) => Ok(()),
        Err(errno) => Err(failed("add to the nftables set", errno)),
    }
}

impl Table {
    /// Adds with `add`, and makes the table first where there is none.
    ///
    /// # Errors
    /// A Linux error number.
    pub(crate) fn adding(self, elements: &[Element], add: impl Fn(&[Element]) -> Result<(), i32>) -> Result<(), i32> {
        match add(elements) {
            Err(nix::libc::ENOENT) => match self.commit(base(self)) {
                // With the exclusive flag whoever makes it makes all of it; somebody else did in between.
                Ok(()) | Err(nix::libc::EEXIST) => add(elements),
                Err(errno) => Err(errno),
            },
            result => result,
        }
    }
}

impl Table {
    /// Elements of these sets whose comment is wanted; none where there is no table.
    pub(crate) fn owned(self, sets: &[&'static str], is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Element>, Error> {
        let mut found = Vec::new();
        for set in sets {
            // Without one of the sets there is no table, and none of the others.
            let Some(elements) = self.elements(set).map_err(|errno| failed("read nftables", errno))? else { break };
            found.extend(elements.into_iter().filter(|element| element.comment.as_deref().is_some_and(&is_wanted)));
        }
        Ok(found)
    }

    /// Success when they are not there.
    pub(crate) fn remove_found(self, elements: &[Element]) -> Result<(), Error> {
        match self.remove(elements) {
            // Somebody else removed the same at this moment.
            Ok(()) | Err(nix::libc::ENOENT) => Ok(()),
            Err(errno) => Err(failed("remove from nftables", errno)),
        }
    }
}

pub(crate) fn failed(what: &str, errno: i32) -> Error {
    Error::new(code::KERNEL, format!("{what}: {}", std::io::Error::from_raw_os_error(errno)))
}

pub(crate) fn pick(address: IpAddr, [v4, v6]: [&'static str; 2]) -> &'static str {
    if address.is_ipv4() { v4 } else { v6 }
}

pub(crate) fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The half-open interval of a network: its first address, and the one after its last.
fn interval(set: &'static str, network: IpNet) -> Vec<Element> {
    let after = match network.broadcast() {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| next.to_be_bytes().to_vec()),
        IpAddr::V6(last) => u128::from(last).checked_add(1).map(|next| next.to_be_bytes().to_vec()),
    };
    let end = after.map(|key| Element { ends_interval: true, ..Element::new(set, key) });
    [Element::new(set, bytes(network.network()))].into_iter().chain(end).collect()
}

/// A table with all its sets, chains and rules.
fn base(table: Table) -> Vec<(NfTablesMessage, u16)> {
    let made = TableMessage { attributes: vec![TableAttribute::Name(table.name.to_owned())] };
    let parts = match table.family {
        NetfilterProtoFamily::Bridge => bridged(),
        _ => FAMILIES.into_iter().flat_map(sets).chain(chains()).chain(rules()).collect(),
    };
    [(NfTablesMessage::NewTable(made), NLM_F_CREATE | NLM_F_EXCL)].into_iter().chain(parts).collect()
}

fn sets(family: Family) -> Vec<(NfTablesMessage, u16)> {
    let Family { version, kind, size, .. } = family;
    let target = (nft::joined(&[kind, nft::PORT]), size + 4);
    let ports = (nft::joined(&[nft::PROTOCOL, nft::PORT]), 8);
    let ports_at = (nft::joined(&[kind, nft::PROTOCOL, nft::PORT]), size + 8);
    vec![
        set(&format!("networks{version}"), SetFlags::Interval, (kind, size), None),
        set(&format!("mapped{version}"), SetFlags::Interval, (kind, size), None),
        set(&format!("ports{version}"), SetFlags::Map, ports, Some(target)),
        set(&format!("ports{version}_at"), SetFlags::Map, ports_at, Some(target)),
    ]
}

fn set(name: &str, flags: SetFlags, key: (u32, u32), data: Option<(u32, u32)>) -> (NfTablesMessage, u16) {
    let mut attributes = vec![
        SetAttribute::Table("berth".to_owned()),
        SetAttribute::Name(name.to_owned()),
        SetAttribute::Flags(flags),
        SetAttribute::KeyType(key.0),
        SetAttribute::KeyLen(key.1),
        // Rules of the same transaction name it; any number will do.
        SetAttribute::Id(1),
    ];
    if let Some((kind, size)) = data {
        attributes.extend([SetAttribute::DataType(kind), SetAttribute::DataLen(size)]);
    }
    (NfTablesMessage::NewSet(SetMessage { attributes }), NLM_F_CREATE)
}

fn chains() -> Vec<(NfTablesMessage, u16)> {
    vec![
        chain("prerouting", Some(("nat", InetHookNumber::PreRouting, nft::DSTNAT))),
        chain("output", Some(("nat", InetHookNumber::LocalOut, nft::DSTNAT))),
        chain("postrouting", Some(("nat", InetHookNumber::PostRouting, nft::SRCNAT))),
        chain("loopback", Some(("filter", InetHookNumber::PreRouting, nft::RAW))),
        chain("hostports", None),
    ]
}

fn chain(name: &str, hook: Option<(&str, InetHookNumber, i32)>) -> (NfTablesMessage, u16) {
    let mut attributes = vec![ChainAttribute::Table("berth".to_owned()), ChainAttribute::Name(name.to_owned())];
    if let Some((kind, number, priority)) = hook {
        attributes.extend([
            ChainAttribute::Type(kind.to_owned()),
            ChainAttribute::Hook(vec![Hook::Number(number.into()), Hook::Priority(priority as u32)]),
        ]);
    }
    (NfTablesMessage::NewChain(ChainMessage { attributes }), NLM_F_CREATE)
}

fn rules() -> Vec<(NfTablesMessage, u16)> {
    let local = || vec![local_destination(), compare(Operator::Equal, RTN_LOCAL.to_ne_bytes().to_vec())];
    let mut rules = vec![
        rule("prerouting", [local(), vec![verdict(Verdict::Jump, Some("hostports"))]].concat()),
        rule("output", [local(), vec![verdict(Verdict::Jump, Some("hostports"))]].concat()),
    ];
    for family in FAMILIES {
        let v = family.version;
        rules.push(rule("hostports", port_of_host(family, true)));
        rules.push(rule("hostports", port_of_host(family, false)));
        let is = |offset, set: &str, flags| in_set(family, offset, &format!("{set}{v}"), flags);
        let leaves = [is(family.source, "networks", 0), is(family.destination, "networks", NOT_IN)].concat();
        rules.push(rule("postrouting", [of(family), leaves, vec![masquerade_here()]].concat()));
        // Answers would go straight to their neighbour, or to the pod itself, untranslated.
        let returns = [is(family.source, "mapped", 0), is(family.destination, "mapped", 0)].concat();
        rules.push(rule("postrouting", [of(family), translated(), returns, vec![masquerade_here()]].concat()));
    }
    for offset in [FAMILIES[0].source, FAMILIES[0].destination] {
        rules.push(rule("loopback", foreign_loopback(offset)));
    }
    rules
}

fn rule(chain: &str, expressions: Vec<Expressions>) -> (NfTablesMessage, u16) {
    let attributes = vec![
        RuleAttribute::Table("berth".to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expressions.into_iter().map(ListAttribute::from).collect()),
    ];
    (NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND)
}

/// `meta nfproto`
fn of(family: Family) -> Vec<Expressions> {
    vec![meta(MetaKey::Nfproto, Register::Reg1), compare(Operator::Equal, vec![family.number])]
}

/// `ip saddr @set`
fn in_set(family: Family, offset: u32, set: &str, flags: u32) -> Vec<Expressions> {
    vec![payload(NETWORK, offset, family.size, Register::Reg1), lookup(set, Register::Reg1, None, flags)]
}

/// `dnat ip to ip daddr . meta l4proto . th dport map @ports4_at`, with or without the address.
fn port_of_host(family: Family, at: bool) -> Vec<Expressions> {
    // Registers of four bytes, from 8 on.
    let register = |bytes: u32| Register::Other(8 + bytes / 4);
    let mut expressions = of(family);
    let mut used = 0;
    if at {
        expressions.push(payload(NETWORK, family.destination, family.size, register(0)));
        used = family.size;
    }
    let set = format!("ports{}{}", family.version, if at { "_at" } else { "" });
    expressions.extend([
        meta(MetaKey::L4Proto, register(used)),
        payload(TRANSPORT, 2, 2, register(used + 4)),
        lookup(&set, register(0), Some(register(0)), 0),
    ]);
    // Type, family, and the registers of address and port.
    let (address, port) = (register(0).into(), register(family.size).into());
    expressions.push(other("nat", &[(1, NFT_NAT_DNAT), (2, family.number.into()), (3, address), (5, port)]));
    expressions
}

/// `fib daddr type`
fn local_destination() -> Expressions {
    let (destination, kind_of_address) = (2, 3);
    other("fib", &[(1, Register::Reg1.into()), (2, kind_of_address), (3, destination)])
}

/// `ct status dnat`
fn translated() -> Vec<Expressions> {
    let status = 2;
    vec![
        other("ct", &[(1, Register::Reg1.into()), (2, status)]),
        masked(IPS_DST_NAT.to_ne_bytes()),
        compare(Operator::NotEqual, vec![0; 4]),
    ]
}

/// `iifname != "lo" ip saddr 127.0.0.0/8 drop`: with route_localnet on the bridge, pods and whoever shares their network could
/// otherwise talk to what listens on localhost only (CVE-2020-8558).
fn foreign_loopback(offset: u32) -> Vec<Expressions> {
    let not_lo = vec![meta(MetaKey::Iifname, Register::Reg1), compare(Operator::NotEqual, interface("lo"))];
    let loopback = vec![
        payload(NETWORK, offset, 4, Register::Reg1),
        masked([255, 0, 0, 0]),
        compare(Operator::Equal, vec![127, 0, 0, 0]),
        verdict(Verdict::Other(NF_DROP), None),
    ];
    [not_lo, of(FAMILIES[0]), loopback].concat()
}

/// Sets, chain and rule of the bridged: `iifname @guarded iifname . ether saddr != @macs drop`.
fn bridged() -> Vec<(NfTablesMessage, u16)> {
    let name = IFNAMSIZ as u32;
    let address = Register::Other(8 + name / 4);
    let expressions = vec![
        meta(MetaKey::Iifname, Register::Reg32_00),
        lookup("guarded", Register::Reg32_00, None, 0),
        payload(LINK, 6, 6, address),
        lookup("macs", Register::Reg32_00, None, NOT_IN),
        verdict(Verdict::Other(NF_DROP), None),
    ];
    let (mut names, flags) = set("guarded", SetFlags::empty(), (nft::IFNAME, name), None);
    if let NfTablesMessage::NewSet(set) = &mut names {
        // Read by `nft` only: the key's byte order (0), of 4 bytes, is the host's (1).
        set.attributes.push(SetAttribute::UserData([&[0, 4][..], &1_u32.to_ne_bytes()].concat()));
    }
    vec![
        (names, flags),
        set("macs", SetFlags::empty(), (nft::joined(&[nft::IFNAME, nft::ETHER]), name + 8), None),
        chain("prerouting", Some(("filter", InetHookNumber::PreRouting, nft::RAW))),
        rule("prerouting", expressions),
    ]
}

/// An interface's name as rules compare it.
pub(crate) fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAMSIZ, 0);
    bytes
}

fn meta(key: MetaKey, register: Register) -> Expressions {
    Expressions::Meta(vec![Meta::DestinationRegister(register), Meta::Key(key)])
}

fn payload(base: u32, offset: u32, length: u32, register: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn compare(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

fn masked(mask: [u8; 4]) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(4),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
    ])
}

/// In a set, or with `destination` what a map has for it.
fn lookup(set: &str, source: Register, destination: Option<Register>, flags: u32) -> Expressions {
    let mut attributes = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(source)];
    match destination {
        Some(register) => attributes.push(Lookup::DestinationRegister(register)),
        None => attributes.push(Lookup::Flags(flags)),
    }
    Expressions::Lookup(attributes)
}

fn verdict(verdict: Verdict, chain: Option<&str>) -> Expressions {
    let chain = chain.map(|name| VerdictAttribute::Chain(name.to_owned()));
    let attributes = [VerdictAttribute::Code(verdict)].into_iter().chain(chain).collect();
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(attributes)),
    ])
}

fn masquerade_here() -> Expressions {
    other("masq", &[])
}

/// One that the netlink crate has no type for, with its attributes by number.
fn other(name: &str, attributes: &[(u16, u32)]) -> Expressions {
    let attribute = |(kind, value): &(u16, u32)| DefaultNla::new(*kind, value.to_be_bytes().to_vec());
    Expressions::Other { expression_type: name.to_owned(), attributes: attributes.iter().map(attribute).collect() }
}
