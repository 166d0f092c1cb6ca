//! Source NAT for traffic that leaves the pods' networks, by nftables over netlink.
//!
//! One table, one chain, one rule and one set for the node, made once: `ip saddr @networks ip daddr != @networks masquerade`. A
//! network is one element, which its first pod adds; a pod adds and removes nothing, because taking an element out makes the
//! kernel wait for a grace period before the caller can go on.

use std::net::Ipv4Addr;

use berth_cni::{Error, code};
use ipnet::Ipv4Net;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
    nftables::{
        ChainAttribute, ChainMessage, DataAttribute, Expressions, Hook, InetHookNumber, ListAttribute, Lookup,
        NfTablesMessage, Payload, Register, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute,
        SetElementFlags, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage,
    },
    none::ControlMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const TABLE: &str = "berth";
const CHAIN: &str = "postrouting";
const SET: &str = "networks";
/// nft's own numbers: the data type `ipv4_addr`, and the priority `srcnat`.
const IPV4_ADDR: u32 = 7;
const PRIORITY_SRCNAT: u32 = 100;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// Payload base "network header", and where the addresses are in it.
const NETWORK_HEADER: u32 = 1;
const SOURCE_OFFSET: u32 = 12;
const DESTINATION_OFFSET: u32 = 16;
const LOOKUP_INVERTED: u32 = 1;

/// Masquerades what leaves `network`; success when that is so already.
pub(crate) fn ensure(network: Ipv4Net) -> Result<(), Error> {
    if has(network)? {
        return Ok(());
    }
    let elements = || vec![(NfTablesMessage::NewSetElement(elements(network)), NLM_F_CREATE)];
    let result = match batch(elements()) {
        Err(nix::libc::ENOENT) => match batch(base()) {
            // Another ADD made it in between; with the exclusive flag a second rule cannot come to be.
            Ok(()) | Err(nix::libc::EEXIST) => batch(elements()),
            Err(errno) => return Err(failed("make nftables table", errno)),
        },
        result => result,
    };
    match result {
        // Part of it is in the set as another network: then that much is masqueraded already.
        Ok(()) | Err(nix::libc::EEXIST) => Ok(()),
        Err(errno) => Err(failed("add to the nftables set", errno)),
    }
}

/// Whether what leaves `network` is masqueraded.
pub(crate) fn has(network: Ipv4Net) -> Result<bool, Error> {
    let first = element(network.network(), SetElementFlags::empty());
    match request(NfTablesMessage::GetSetElement(list(vec![first])), NLM_F_REQUEST | NLM_F_ACK) {
        Ok(()) => Ok(true),
        Err(nix::libc::ENOENT) => Ok(false),
        Err(errno) => Err(failed("read the nftables set", errno)),
    }
}

fn failed(what: &str, errno: i32) -> Error {
    Error::new(code::KERNEL, format!("{what}: {}", std::io::Error::from_raw_os_error(errno)))
}

/// Table, chain, set and rule. The table is exclusive: whoever makes it makes all of it, in one transaction.
fn base() -> Vec<(NfTablesMessage, u16)> {
    let table = TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] };
    let set = SetMessage {
        attributes: vec![
            SetAttribute::Table(TABLE.to_owned()),
            SetAttribute::Name(SET.to_owned()),
            SetAttribute::Flags(SetFlags::Interval),
            SetAttribute::KeyType(IPV4_ADDR),
            SetAttribute::KeyLen(4),
            SetAttribute::Id(1),
        ],
    };
    let chain = ChainMessage {
        attributes: vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(CHAIN.to_owned()),
            ChainAttribute::Type("nat".to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(InetHookNumber::PostRouting.into()),
                Hook::Priority(PRIORITY_SRCNAT),
            ]),
        ],
    };
    let expressions = [address_in_set(SOURCE_OFFSET, 0), address_in_set(DESTINATION_OFFSET, LOOKUP_INVERTED)]
        .into_iter()
        .flatten()
        .chain([Expressions::Other { expression_type: "masq".to_owned(), attributes: Vec::<DefaultNla>::new() }]);
    let rule = RuleMessage {
        attributes: vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(CHAIN.to_owned()),
            RuleAttribute::Expressions(expressions.map(ListAttribute::from).collect()),
        ],
    };
    vec![
        (NfTablesMessage::NewTable(table), NLM_F_CREATE | NLM_F_EXCL),
        (NfTablesMessage::NewSet(set), NLM_F_CREATE),
        (NfTablesMessage::NewChain(chain), NLM_F_CREATE),
        (NfTablesMessage::NewRule(rule), NLM_F_CREATE | NLM_F_APPEND),
    ]
}

/// Loads an address of the IPv4 header and looks it up among the networks.
fn address_in_set(offset: u32, flags: u32) -> [Expressions; 2] {
    let payload = vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(NETWORK_HEADER),
        Payload::Offset(offset),
        Payload::Len(4),
    ];
    let lookup = vec![
        Lookup::Set(SET.to_owned()),
        Lookup::SourceRegister(Register::Reg1),
        Lookup::SetId(1),
        Lookup::Flags(flags),
    ];
    [Expressions::Payload(payload), Expressions::Lookup(lookup)]
}

/// The half-open interval of a network: its first address, and the one after its last.
fn elements(network: Ipv4Net) -> SetElementMessage {
    let start = element(network.network(), SetElementFlags::empty());
    let after = u32::from(network.broadcast()).checked_add(1).map(Ipv4Addr::from);
    let end = after.map(|address| element(address, SetElementFlags::IntervalEnd));
    list([start].into_iter().chain(end).collect())
}

fn element(address: Ipv4Addr, flags: SetElementFlags) -> ListAttribute<SetElementAttribute> {
    let key = SetElementAttribute::Key(DataAttribute::Value(address.octets().to_vec()));
    let flags = (!flags.is_empty()).then_some(SetElementAttribute::Flags(flags));
    ListAttribute::Element([key].into_iter().chain(flags).collect())
}

fn list(elements: Vec<ListAttribute<SetElementAttribute>>) -> SetElementMessage {
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(TABLE.to_owned()),
            SetElementList::Set(SET.to_owned()),
            SetElementList::Elements(elements),
        ],
    }
}

/// One transaction: all of it or nothing. The error is a Linux error number.
fn batch(messages: Vec<(NfTablesMessage, u16)>) -> Result<(), i32> {
    let control = |message| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
        (NetfilterMessage::new(header, message), NLM_F_REQUEST)
    };
    let mut packets = vec![control(ControlMessage::BatchBegin)];
    packets.extend(messages.into_iter().map(|(message, flags)| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
        (NetfilterMessage::new(header, message), NLM_F_REQUEST | NLM_F_ACK | flags)
    }));
    packets.push(control(ControlMessage::BatchEnd));
    let acknowledgements = packets.len() - 2;
    converse(packets, acknowledgements)
}

fn request(message: NfTablesMessage, flags: u16) -> Result<(), i32> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    converse(vec![(NetfilterMessage::new(header, message), flags)], 1)
}

/// Sends the packets as one and waits for that many acknowledgements, or for the first error.
fn converse(packets: Vec<(NetfilterMessage, u16)>, acknowledgements: usize) -> Result<(), i32> {
    let errno = |error: std::io::Error| error.raw_os_error().unwrap_or(nix::libc::EIO);
    let mut bytes = Vec::new();
    for (sequence, (message, flags)) in (1..).zip(packets) {
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = flags;
        packet.header.sequence_number = sequence;
        packet.finalize();
        let start = bytes.len();
        bytes.resize(start + packet.buffer_len(), 0);
        packet.serialize(&mut bytes[start..]);
    }
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(errno)?;
    socket.bind_auto().map_err(errno)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(errno)?;
    socket.send(&bytes, 0).map_err(errno)?;
    let mut seen = 0;
    while seen < acknowledgements {
        let (answer, _) = socket.recv_from_full().map_err(errno)?;
        let mut rest = answer.as_slice();
        while rest.len() >= 16 {
            let packet = NetlinkMessage::<NetfilterMessage>::deserialize(rest).map_err(|_| nix::libc::EBADMSG)?;
            if let NetlinkPayload::Error(error) = &packet.payload {
                match error.code {
                    None => seen += 1,
                    Some(code) => return Err(-code.get()),
                }
            }
            let length = (packet.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    Ok(())
}
