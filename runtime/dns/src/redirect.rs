//! The rules of nftables in a container's namespace by which what it sends to 127.0.0.11:53 goes to the
//! ports at which its server listens. The server has no port 53 of its own: that is the container's,
//! which may be a name server itself.
//!
//! ```text
//! table ip berth-dns {
//!   chain output { type nat hook output priority -100
//!     ip daddr 127.0.0.11 udp dport 53 dnat to :PORT
//!     ip daddr 127.0.0.11 tcp dport 53 dnat to :PORT
//!   }
//! }
//! ```
//!
//! Answers are translated back by connection tracking, which knows what it has translated.

use std::{io, net::Ipv4Addr};

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily,
    nftables::{
        ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate,
        InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register,
        RuleAttribute, RuleMessage, TableAttribute, TableMessage,
    },
    none::ControlMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const TABLE: &str = "berth-dns";
const CHAIN: &str = "output";
/// The port that every program asks at.
const DOMAIN: u16 = 53;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u8 = 16;
/// Of translations of destinations (linux/netfilter_ipv4.h).
const PRIORITY_DSTNAT: i32 = -100;
// Headers of a packet (enum nft_payload_bases), and the offsets of fields in them.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const DESTINATION_ADDRESS: u32 = 16;
const DESTINATION_PORT: u32 = 2;
const UDP: u8 = 17;
const TCP: u8 = 6;

/// The ports at which a server listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) udp: u16,
    pub(crate) tcp: u16,
}

/// Sets the rules of the namespace that the caller is in, in the place of those of an earlier server.
/// One transaction: nobody meets a moment without rules.
///
/// # Errors
/// What the kernel says: it may have no nftables.
pub(crate) fn set(address: Ipv4Addr, ports: Ports) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut bytes = Vec::new();
    for (sequence, (message, flags)) in (1..).zip(transaction(address, ports)) {
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | flags;
        packet.header.sequence_number = sequence;
        packet.finalize();
        let start = bytes.len();
        bytes.resize(start + packet.buffer_len(), 0);
        packet.serialize(&mut bytes[start..]);
    }
    socket.send(&bytes, 0)?;
    // Errors of any message, or the success of the last one, which alone asks for an answer.
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&answer);
    match answer.map(|answer| answer.payload) {
        Ok(NetlinkPayload::Error(error)) => {
            error.code.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(-code.get())))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The messages of the transaction, with their flags.
fn transaction(address: Ipv4Addr, ports: Ports) -> Vec<(NetfilterMessage, u16)> {
    let table = || TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] };
    let chain = ChainMessage {
        attributes: vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(CHAIN.to_owned()),
            ChainAttribute::Type("nat".to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(InetHookNumber::LocalOut.into()),
                Hook::Priority(PRIORITY_DSTNAT as u32),
            ]),
        ],
    };
    let changes = [
        // Made if it is not there, so that it can be deleted, and made anew.
        (NfTablesMessage::NewTable(table()), NLM_F_CREATE),
        (NfTablesMessage::DeleteTable(table()), 0),
        (NfTablesMessage::NewTable(table()), NLM_F_CREATE),
        (NfTablesMessage::NewChain(chain), NLM_F_CREATE),
        (rule(address, UDP, ports.udp), NLM_F_CREATE | NLM_F_APPEND),
        (rule(address, TCP, ports.tcp), NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK),
    ];
    let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
    let changes = changes
        .map(|(change, flags)| (NetfilterMessage::new(header.clone(), change), flags))
        .into_iter();
    let begin =
        ControlMessage::Other { message_type: NFNL_MSG_BATCH_BEGIN, attributes: Vec::new() };
    [control(begin)].into_iter().chain(changes).chain([control(ControlMessage::BatchEnd)]).collect()
}

/// The begin or the end of a transaction.
fn control(message: ControlMessage) -> (NetfilterMessage, u16) {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES);
    (NetfilterMessage::new(header, message), 0)
}

/// `ip daddr ADDRESS PROTOCOL dport 53 dnat to :PORT`
fn rule(address: Ipv4Addr, protocol: u8, port: u16) -> NfTablesMessage {
    let expressions = [
        payload(NETWORK_HEADER, DESTINATION_ADDRESS, 4),
        is(address.octets().to_vec()),
        Expressions::Meta(vec![
            Meta::DestinationRegister(Register::Reg1),
            Meta::Key(MetaKey::L4Proto),
        ]),
        is(vec![protocol]),
        payload(TRANSPORT_HEADER, DESTINATION_PORT, 2),
        is(DOMAIN.to_be_bytes().to_vec()),
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Reg1),
            Immediate::Data(DataAttribute::Value(port.to_be_bytes().to_vec())),
        ]),
        to_port_in_register(),
    ];
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(CHAIN.to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(ListAttribute::from).collect()),
        ],
    })
}

/// Loads bytes of a header into the register.
fn payload(base: u32, offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

/// Goes on with the rule if the register is this.
fn is(value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(Operator::Equal),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

/// `dnat to :PORT`, which is in the register; the address stays.
fn to_port_in_register() -> Expressions {
    // NFTA_NAT_TYPE with NFT_NAT_DNAT, NFTA_NAT_FAMILY with NFPROTO_IPV4, NFTA_NAT_REG_PROTO_MIN.
    let attributes = [(1, 1), (2, 2), (5, Register::Reg1.into())];
    Expressions::Other {
        expression_type: "nat".to_owned(),
        attributes: attributes
            .map(|(kind, value): (u16, u32)| DefaultNla::new(kind, value.to_be_bytes().to_vec()))
            .into(),
    }
}
