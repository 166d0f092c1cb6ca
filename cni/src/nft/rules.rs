//! The rules of the node: one table that is made once. A pod only adds and removes elements of its
//! sets and maps, so that the cost of a pod does not grow with the number of pods.
//!
//! ```text
//! table inet berth {
//!   set networks4, networks6   pods' networks that are masqueraded when they leave
//!   set mapped4, mapped6       networks of pods that have ports of the host, and 127.0.0.0/8
//!   map ports4, ports6         protocol . port            : address . port of a pod
//!   map ports4_at, ports6_at   address . protocol . port  : the same, for one address of the host
//!   chain prerouting           to an address of the host: jump hostports
//!   chain output               the same, for what the host itself sends, but not to ::1
//!   chain hostports            dnat to the pod that the maps name
//!   chain postrouting          masquerade what leaves the pods' networks, and what must come back
//!                              through the host to be translated back
//!   chain loopback             drop packets from or to 127.0.0.0/8 that come from outside
//! }
//! ```
//!
//! A network is one element, which its first pod adds; that of a network of the engine goes with it,
//! those of pods stay. A port of the host is one element, whose comment says which pod it belongs to.

use std::net::{IpAddr, Ipv6Addr};

use berth_cni::{Error, code};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::{
    NetfilterProtoFamily,
    nftables::{
        ChainAttribute, ChainMessage, Expressions, Hook, InetHookNumber, ListAttribute, MetaKey,
        NfTablesMessage, Operator, Register, RuleAttribute, RuleMessage, SetAttribute, SetFlags,
        SetMessage, TableAttribute, TableMessage, Verdict,
    },
};

use super::{
    element::Element,
    expr::{self, FAMILIES, Family, IFNAMSIZ, NOT_IN, interface},
    table::Table,
};

/// The table of this module's documentation.
pub(crate) const NODE: Table = Table { family: NetfilterProtoFamily::Inet, name: "berth" };

/// For frames between ports of a bridge, which never pass a table of family inet.
pub(crate) const BRIDGED: Table = Table { family: NetfilterProtoFamily::Bridge, name: "berth" };

/// What keeps networks apart, see `isolation`. A table of its own: the other one is made once, and
/// one of an older build would lack this.
pub(crate) const ISOLATION: Table =
    Table { family: NetfilterProtoFamily::Inet, name: "berth-isolation" };

/// The maps of ports of the host.
pub(crate) const PORT_MAPS: [&str; 4] = ["ports4", "ports4_at", "ports6", "ports6_at"];

/// Ports of a bridge whose MAC addresses are checked, and the pairs of port and address that pass.
pub(crate) const MACSPOOF_SETS: [&str; 2] = ["guarded", "macs"];

/// Masquerades packets that leave `network`; success when that is so already.
pub(crate) fn masquerade(network: IpNet) -> Result<(), Error> {
    add_network(pick(network.addr(), ["networks4", "networks6"]), network)
}

/// Whether packets that leave `network` are masqueraded.
pub(crate) fn is_masqueraded(network: IpNet) -> Result<bool, Error> {
    is_in(pick(network.addr(), ["networks4", "networks6"]), network)
}

fn is_in(set: &'static str, network: IpNet) -> Result<bool, Error> {
    let found = NODE.look_up(&[Element::new(set, bytes(network.network()))]);
    Ok(!found.map_err(|errno| failed("read the nftables set", errno))?.is_empty())
}

/// Masquerades connections through ports of the host that come from pods of `network` itself, or
/// from the host, so that the pod's responses come back through the host, which translates them.
pub(crate) fn allow_mapped(network: IpNet) -> Result<(), Error> {
    let set = pick(network.addr(), ["mapped4", "mapped6"]);
    add_network(set, network)?;
    match network {
        // A connection from the host to 127.0.0.1 has a source address that no pod can answer to.
        IpNet::V4(_) => add_network(set, IpNet::new_assert([127, 0, 0, 0].into(), 8)),
        IpNet::V6(_) => Ok(()),
    }
}

/// Takes a network out of all sets that have it; success where none has.
pub(crate) fn forget_network(network: IpNet) -> Result<(), Error> {
    for sets in [["networks4", "networks6"], ["mapped4", "mapped6"]] {
        let set = pick(network.addr(), sets);
        if is_in(set, network)?
            // ENOENT: it is a part of another network, which stays.
            && let Err(errno) = NODE.commit(&NODE.removals(&interval(set, network)))
            && errno != nix::libc::ENOENT
        {
            return Err(failed("remove from the nftables set", errno));
        }
    }
    Ok(())
}

/// Adds a network to a set of intervals, where it is not in it.
fn add_network(set: &'static str, network: IpNet) -> Result<(), Error> {
    if is_in(set, network)? {
        return Ok(());
    }
    match NODE.adding(&interval(set, network), |elements| NODE.add(elements)) {
        // EEXIST: another network in the set overlaps with this one, so that at least a part of it
        // is there already. Intervals of a set cannot overlap.
        Ok(()) | Err(nix::libc::EEXIST) => Ok(()),
        Err(errno) => Err(failed("add to the nftables set", errno)),
    }
}

impl Table {
    /// Adds elements with `add`, and makes the table first where there is none. Looking for the
    /// table each time would cost every pod a request.
    ///
    /// # Errors
    /// A Linux error number.
    pub(crate) fn adding(
        self,
        elements: &[Element],
        add: impl Fn(&[Element]) -> Result<(), i32>,
    ) -> Result<(), i32> {
        match add(elements) {
            Err(nix::libc::ENOENT) => match self.commit(&base(self)) {
                // NLM_F_EXCL: whoever makes the table makes all of it in one transaction. With
                // EEXIST somebody else has done so in between.
                Ok(()) | Err(nix::libc::EEXIST) => add(elements),
                Err(errno) => Err(errno),
            },
            result => result,
        }
    }
}

/// `WHAT: CAUSE`, with the kernel's words for an error number.
pub(crate) fn failed(what: &str, errno: i32) -> Error {
    Error::new(code::KERNEL, format!("{what}: {}", std::io::Error::from_raw_os_error(errno)))
}

/// One of two names, by the family of an address.
pub(crate) fn pick(address: IpAddr, [v4, v6]: [&'static str; 2]) -> &'static str {
    if address.is_ipv4() { v4 } else { v6 }
}

/// An address as a field of a key.
pub(crate) fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The elements of a network in a set of intervals: its first address, and the one after its last,
/// which ends the interval. A network that reaches to the last address of all has no end.
fn interval(set: &'static str, network: IpNet) -> Vec<Element> {
    let after = match network.broadcast() {
        IpAddr::V4(last) => u32::from(last).checked_add(1).map(|next| next.to_be_bytes().to_vec()),
        IpAddr::V6(last) => u128::from(last).checked_add(1).map(|next| next.to_be_bytes().to_vec()),
    };
    let end = after.map(|key| Element { ends_interval: true, ..Element::new(set, key) });
    [Element::new(set, bytes(network.network()))].into_iter().chain(end).collect()
}

/// Makes each table, as the first pod would that needs it. For a network namespace without any.
///
/// # Errors
/// The kernel lacks a part of nftables.
pub(crate) fn try_all() -> Result<(), Error> {
    for (table, what) in [
        (NODE, "make the rules that translate addresses (nf_tables, nft_chain_nat, nft_masq)"),
        (ISOLATION, "make the rules that keep networks apart (nf_tables, nft_ct)"),
        (BRIDGED, "make the rules of bridges (nf_tables_bridge)"),
    ] {
        table.commit(&base(table)).map_err(|errno| failed(what, errno))?;
    }
    Ok(())
}

/// A table with all its sets, chains and rules.
fn base(table: Table) -> Vec<(NfTablesMessage, u16)> {
    let made = TableMessage { attributes: vec![TableAttribute::Name(table.name.to_owned())] };
    let parts = match table {
        BRIDGED => bridged(),
        ISOLATION => isolation(),
        _ => FAMILIES.into_iter().flat_map(sets).chain(chains()).chain(rules()).collect(),
    };
    [(NfTablesMessage::NewTable(made), NLM_F_CREATE | NLM_F_EXCL)]
        .into_iter()
        .chain(parts)
        .collect()
}

/// The sets and maps of one family.
fn sets(family: Family) -> Vec<(NfTablesMessage, u16)> {
    let Family { version, kind, size, .. } = family;
    // Each field has a multiple of four bytes.
    let target = (expr::joined(&[kind, expr::PORT]), size + 4);
    let ports = (expr::joined(&[expr::PROTOCOL, expr::PORT]), 8);
    let ports_at = (expr::joined(&[kind, expr::PROTOCOL, expr::PORT]), size + 8);
    vec![
        set(NODE, &format!("networks{version}"), SetFlags::Interval, (kind, size), None),
        set(NODE, &format!("mapped{version}"), SetFlags::Interval, (kind, size), None),
        set(NODE, &format!("ports{version}"), SetFlags::Map, ports, Some(target)),
        set(NODE, &format!("ports{version}_at"), SetFlags::Map, ports_at, Some(target)),
    ]
}

/// A set, or with `data` a map; key and value by type and length.
fn set(
    table: Table,
    name: &str,
    flags: SetFlags,
    key: (u32, u32),
    data: Option<(u32, u32)>,
) -> (NfTablesMessage, u16) {
    let mut attributes = vec![
        SetAttribute::Table(table.name.to_owned()),
        SetAttribute::Name(name.to_owned()),
        SetAttribute::Flags(flags),
        SetAttribute::KeyType(key.0),
        SetAttribute::KeyLen(key.1),
        // The kernel wants an id, by which rules of the same transaction may refer to a set. Ours
        // refer by name, so any number will do.
        SetAttribute::Id(1),
    ];
    if let Some((kind, size)) = data {
        attributes.extend([SetAttribute::DataType(kind), SetAttribute::DataLen(size)]);
    }
    (NfTablesMessage::NewSet(SetMessage { attributes }), NLM_F_CREATE)
}

fn chains() -> Vec<(NfTablesMessage, u16)> {
    vec![
        chain(NODE, "prerouting", Some(("nat", InetHookNumber::PreRouting, expr::PRIORITY_DSTNAT))),
        chain(NODE, "output", Some(("nat", InetHookNumber::LocalOut, expr::PRIORITY_DSTNAT))),
        chain(
            NODE,
            "postrouting",
            Some(("nat", InetHookNumber::PostRouting, expr::PRIORITY_SRCNAT)),
        ),
        chain(NODE, "loopback", Some(("filter", InetHookNumber::PreRouting, expr::PRIORITY_RAW))),
        chain(NODE, "hostports", None),
    ]
}

/// A chain; one without a hook is for jumps.
fn chain(
    table: Table,
    name: &str,
    hook: Option<(&str, InetHookNumber, i32)>,
) -> (NfTablesMessage, u16) {
    let mut attributes =
        vec![ChainAttribute::Table(table.name.to_owned()), ChainAttribute::Name(name.to_owned())];
    if let Some((kind, number, priority)) = hook {
        attributes.extend([
            ChainAttribute::Type(kind.to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(number.into()),
                Hook::Priority(priority as u32),
            ]),
        ]);
    }
    (NfTablesMessage::NewChain(ChainMessage { attributes }), NLM_F_CREATE)
}

fn rules() -> Vec<(NfTablesMessage, u16)> {
    let to_ports =
        [expr::local_destination(), vec![expr::verdict(Verdict::Jump, Some("hostports"))]].concat();
    let mut rules = vec![
        rule(NODE, "prerouting", to_ports.clone()),
        rule(NODE, "output", to_own_loopback6()),
        rule(NODE, "output", to_ports),
    ];
    for family in FAMILIES {
        let v = family.version;
        // A port of one address before the same port of all addresses.
        rules.push(rule(NODE, "hostports", port_of_host(family, true)));
        rules.push(rule(NODE, "hostports", port_of_host(family, false)));
        let is =
            |offset, set: &str, flags| expr::in_set(family, offset, &format!("{set}{v}"), flags);
        let leaves =
            [is(family.source, "networks", 0), is(family.destination, "networks", NOT_IN)].concat();
        rules.push(rule(
            NODE,
            "postrouting",
            [expr::of(family), leaves, vec![expr::masquerade()]].concat(),
        ));
        // A pod that connects to a port of the host which leads to its own network, or to itself:
        // the response would go straight to it, and not be translated back by the host.
        let returns =
            [is(family.source, "mapped", 0), is(family.destination, "mapped", 0)].concat();
        rules.push(rule(
            NODE,
            "postrouting",
            [expr::of(family), expr::translated(), returns, vec![expr::masquerade()]].concat(),
        ));
    }
    for offset in [FAMILIES[0].source, FAMILIES[0].destination] {
        rules.push(rule(NODE, "loopback", foreign_loopback(offset)));
    }
    rules
}

/// A rule at the end of a chain.
fn rule(table: Table, chain: &str, expressions: Vec<Expressions>) -> (NfTablesMessage, u16) {
    let attributes = vec![
        RuleAttribute::Table(table.name.to_owned()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expressions.into_iter().map(ListAttribute::from).collect()),
    ];
    (NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND)
}

/// `dnat ip to ip daddr . meta l4proto . th dport map @ports4_at`, or without the address and by
/// `@ports4`.
fn port_of_host(family: Family, at: bool) -> Vec<Expressions> {
    // The key of several fields lies in registers of four bytes one after the other. Their numbers
    // begin at 8 (NFT_REG32_00).
    let register = |bytes: u32| Register::Other(8 + bytes / 4);
    let mut expressions = expr::of(family);
    let mut used = 0;
    if at {
        expressions.push(expr::payload(
            expr::NETWORK_HEADER,
            family.destination,
            family.size,
            register(0),
        ));
        used = family.size;
    }
    let set = format!("ports{}{}", family.version, if at { "_at" } else { "" });
    expressions.extend([
        expr::meta(MetaKey::L4Proto, register(used)),
        expr::payload(expr::TRANSPORT_HEADER, 2, 2, register(used + 4)),
        expr::lookup(&set, register(0), Some(register(0)), 0),
    ]);
    expressions.push(expr::dnat(family, register(0), register(family.size)));
    expressions
}

/// `ip6 daddr ::1 return`: a connection to ::1 cannot leave the host, and there is no switch for it as
/// for 127.0.0.1. Translated it would hang; as it is, it is refused, and clients that have resolved
/// "localhost" try the other family.
fn to_own_loopback6() -> Vec<Expressions> {
    let family = FAMILIES[1];
    let matched = vec![
        expr::payload(expr::NETWORK_HEADER, family.destination, family.size, Register::Reg1),
        expr::compare(Operator::Equal, Ipv6Addr::LOCALHOST.octets().to_vec()),
        expr::verdict(Verdict::Return, None),
    ];
    [expr::of(family), matched].concat()
}

/// `iifname != "lo" ip saddr 127.0.0.0/8 drop`: with route_localnet on the bridge, pods and whoever
/// shares their network could otherwise talk to what listens on localhost only (CVE-2020-8558).
fn foreign_loopback(offset: u32) -> Vec<Expressions> {
    let not_lo = vec![
        expr::meta(MetaKey::Iifname, Register::Reg1),
        expr::compare(Operator::NotEqual, interface("lo")),
    ];
    let loopback = vec![
        expr::payload(expr::NETWORK_HEADER, offset, 4, Register::Reg1),
        expr::masked([255, 0, 0, 0]),
        expr::compare(Operator::Equal, vec![127, 0, 0, 0]),
        expr::drop_packet(),
    ];
    [not_lo, expr::of(FAMILIES[0]), loopback].concat()
}

/// Sets, chain and rule of the bridge's table:
/// `iifname @guarded iifname . ether saddr != @macs drop`.
fn bridged() -> Vec<(NfTablesMessage, u16)> {
    let name = IFNAMSIZ as u32;
    let address = Register::Other(8 + name / 4);
    let expressions = vec![
        expr::meta(MetaKey::Iifname, Register::Reg32_00),
        expr::lookup("guarded", Register::Reg32_00, None, 0),
        expr::payload(expr::LINK_HEADER, 6, 6, address),
        expr::lookup("macs", Register::Reg32_00, None, NOT_IN),
        expr::drop_packet(),
    ];
    vec![
        interfaces(BRIDGED, "guarded"),
        set(
            BRIDGED,
            "macs",
            SetFlags::empty(),
            (expr::joined(&[expr::INTERFACE, expr::ETHER_ADDRESS]), name + 8),
            None,
        ),
        chain(
            BRIDGED,
            "prerouting",
            Some(("filter", InetHookNumber::PreRouting, expr::PRIORITY_RAW)),
        ),
        rule(BRIDGED, "prerouting", expressions),
    ]
}

/// A set of interfaces.
fn interfaces(table: Table, name: &str) -> (NfTablesMessage, u16) {
    let key = (expr::INTERFACE, IFNAMSIZ as u32);
    let (mut names, flags) = set(table, name, SetFlags::empty(), key, None);
    if let NfTablesMessage::NewSet(set) = &mut names {
        // Only `nft` reads this, to print the names: the type of the attribute is the byte order of
        // the key (0), its length 4, and its value the host's byte order (1).
        set.attributes.push(SetAttribute::UserData([&[0, 4][..], &1_u32.to_ne_bytes()].concat()));
    }
    (names, flags)
}

/// Sets, chain and rules of the table that keeps networks apart, which `isolation` describes.
fn isolation() -> Vec<(NfTablesMessage, u16)> {
    let name = IFNAMSIZ as u32;
    let pair = (expr::joined(&[expr::INTERFACE, expr::INTERFACE]), 2 * name);
    let first = Register::Reg32_00;
    let second = Register::Other(8 + name / 4);
    let into = expr::meta(MetaKey::Iifname, first);
    let out = expr::meta(MetaKey::Oifname, first);
    let is_in = |set| expr::lookup(set, first, None, 0);
    let within = vec![
        into.clone(),
        expr::meta(MetaKey::Oifname, second),
        is_in("within"),
        expr::accept_packet(),
    ];
    let rules = [
        within,
        vec![into.clone(), is_in("internal"), expr::drop_packet()],
        vec![out.clone(), is_in("internal"), expr::drop_packet()],
        [expr::of_known_connection(), vec![expr::accept_packet()]].concat(),
        [expr::translated(), vec![expr::accept_packet()]].concat(),
        vec![out.clone(), is_in("closed"), expr::drop_packet()],
        vec![into, is_in("bridges"), out, is_in("bridges"), expr::drop_packet()],
    ];
    let hook = ("filter", InetHookNumber::Forward, expr::PRIORITY_FILTER);
    ["bridges", "closed", "internal"]
        .into_iter()
        .map(|name| interfaces(ISOLATION, name))
        .chain([
            set(ISOLATION, "within", SetFlags::empty(), pair, None),
            chain(ISOLATION, "forward", Some(hook)),
        ])
        .chain(rules.into_iter().map(|expressions| rule(ISOLATION, "forward", expressions)))
        .collect()
}
