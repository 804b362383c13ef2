//! How entries, votes, markers and messages look as bytes: on disk in the journal and the checkpoint, and on the wire.
//!
//! The encodings are ours and never a serialization of openraft's types, whose shape changes with every release. All
//! numbers are little-endian; every top-level value starts with a format byte, so that a later format can be told
//! apart. The journal and the checkpoint add the checksums.
//!
//! ```text
//! entry       format kind:u8 term:u64 index:u64 payload      kind 0 blank, 1 command (payload = its bytes), 2 members
//! vote        format term:u64 node:u64 committed:u8
//! position    format log-id?                                 the committed and the purged marker
//! marker      format log-id? log-id? members                 last applied entry, last membership
//! log-id?     0 | 1 term:u64 index:u64
//! members     configs:u32 (count:u32 node:u64…)… nodes:u32 (node:u64 length:u32 address)…
//! ```

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::BasicNode;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};

use crate::error::{Error, Result};
use crate::types::{Command, Entry, LogId, Membership, Payload, StoredMembership, TypeConfig, Vote, log_id};

/// The only format so far, of every kind of value.
const FORMAT: u8 = 1;

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERS: u8 = 2;

/// Format, kind, term and index: what an entry is longer than its command.
pub(crate) const ENTRY_HEADER: usize = 1 + 1 + 8 + 8;

/// Encodes a log entry as the journal stores it and as followers receive it.
pub(crate) fn encode_entry(entry: &Entry) -> Bytes {
    let room = match &entry.payload {
        Payload::Normal(command) => command.0.len(),
        Payload::Blank | Payload::Membership(_) => 0,
    };
    let mut out = BytesMut::with_capacity(ENTRY_HEADER + room);
    put_entry(&mut out, entry);
    out.freeze()
}

fn put_entry(out: &mut BytesMut, entry: &Entry) {
    out.put_u8(FORMAT);
    out.put_u8(match &entry.payload {
        Payload::Blank => BLANK,
        Payload::Normal(_) => COMMAND,
        Payload::Membership(_) => MEMBERS,
    });
    out.put_u64_le(*entry.log_id.leader_id);
    out.put_u64_le(entry.log_id.index);
    match &entry.payload {
        Payload::Blank => {}
        Payload::Normal(command) => out.put_slice(&command.0),
        Payload::Membership(membership) => put_members(out, membership),
    }
}

/// Decodes a log entry; a command shares the memory of `bytes`.
pub(crate) fn decode_entry(bytes: Bytes) -> Result<Entry> {
    let mut input = Input::new("a log entry", bytes)?;
    let kind = input.u8()?;
    let term = input.u64()?;
    let index = input.u64()?;
    let payload = match kind {
        BLANK => Payload::Blank,
        COMMAND => Payload::Normal(Command(input.rest())),
        MEMBERS => Payload::Membership(input.members()?),
        other => return Err(input.bad(format!("unknown kind {other}"))),
    };
    input.end()?;
    Ok(Entry { log_id: log_id(term, index), payload })
}

/// Encodes a vote.
pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u8(FORMAT);
    put_vote(&mut out, vote);
    out.freeze()
}

/// Decodes a vote.
pub(crate) fn decode_vote(bytes: Bytes) -> Result<Vote> {
    let mut input = Input::new("a vote", bytes)?;
    let vote = input.vote()?;
    input.end()?;
    Ok(vote)
}

/// Encodes the committed or the purged marker.
pub(crate) fn encode_position(position: &Option<LogId>) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u8(FORMAT);
    put_log_id(&mut out, position);
    out.freeze()
}

/// Decodes the committed or the purged marker.
pub(crate) fn decode_position(bytes: Bytes) -> Result<Option<LogId>> {
    let mut input = Input::new("a log position", bytes)?;
    let position = input.log_id()?;
    input.end()?;
    Ok(position)
}

/// Encodes the marker of a checkpoint: last applied entry and last membership.
pub(crate) fn encode_marker(applied: &Option<LogId>, membership: &StoredMembership) -> Bytes {
    let mut out = BytesMut::with_capacity(96);
    out.put_u8(FORMAT);
    put_log_id(&mut out, applied);
    put_log_id(&mut out, membership.log_id());
    put_members(&mut out, membership.membership());
    out.freeze()
}

/// Decodes the marker of a checkpoint.
pub(crate) fn decode_marker(bytes: Bytes) -> Result<(Option<LogId>, StoredMembership)> {
    let mut input = Input::new("the marker of a checkpoint", bytes)?;
    let applied = input.log_id()?;
    let at = input.log_id()?;
    let members = input.members()?;
    input.end()?;
    Ok((applied, StoredMembership::new(at, members)))
}

/// Encodes a request to append entries (or a heartbeat).
pub(crate) fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(FORMAT);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, &request.prev_log_id);
    put_log_id(&mut out, &request.leader_commit);
    put_len(&mut out, request.entries.len());
    for entry in &request.entries {
        // The length is only known afterwards: a placeholder is filled in.
        let at = out.len();
        out.put_u32_le(0);
        put_entry(&mut out, entry);
        let length = to_u32(out.len() - at - 4).to_le_bytes();
        out[at..at + 4].copy_from_slice(&length);
    }
    out.freeze()
}

/// Decodes a request to append entries.
pub(crate) fn decode_append(bytes: Bytes) -> Result<AppendEntriesRequest<TypeConfig>> {
    let mut input = Input::new("an append request", bytes)?;
    let vote = input.vote()?;
    let prev_log_id = input.log_id()?;
    let leader_commit = input.log_id()?;
    let count = input.u32()? as usize;
    let mut entries = Vec::with_capacity(count.min(4096));
    for _ in 0..count {
        let length = input.u32()? as usize;
        entries.push(decode_entry(input.take(length)?)?);
    }
    input.end()?;
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

/// Encodes the answer to an append request.
pub(crate) fn encode_append_reply(reply: &AppendEntriesResponse<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(24);
    out.put_u8(FORMAT);
    match reply {
        AppendEntriesResponse::Success => out.put_u8(0),
        AppendEntriesResponse::PartialSuccess(upto) => {
            out.put_u8(1);
            put_log_id(&mut out, upto);
        }
        AppendEntriesResponse::Conflict => out.put_u8(2),
        AppendEntriesResponse::HigherVote(vote) => {
            out.put_u8(3);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

/// Decodes the answer to an append request.
pub(crate) fn decode_append_reply(bytes: Bytes) -> Result<AppendEntriesResponse<TypeConfig>> {
    let mut input = Input::new("an append reply", bytes)?;
    let reply = match input.u8()? {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(input.log_id()?),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(input.vote()?),
        other => return Err(input.bad(format!("unknown outcome {other}"))),
    };
    input.end()?;
    Ok(reply)
}

/// Encodes a request for a vote or a pre-vote.
pub(crate) fn encode_vote_request(request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(40);
    out.put_u8(FORMAT);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, &request.last_log_id);
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

/// Decodes a request for a vote or a pre-vote.
pub(crate) fn decode_vote_request(bytes: Bytes) -> Result<VoteRequest<TypeConfig>> {
    let mut input = Input::new("a vote request", bytes)?;
    let vote = input.vote()?;
    let last_log_id = input.log_id()?;
    let leadership_transfer = input.bool()?;
    input.end()?;
    Ok(VoteRequest { vote, last_log_id, leadership_transfer })
}

/// Encodes the answer to a vote or pre-vote request.
pub(crate) fn encode_vote_reply(reply: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(40);
    out.put_u8(FORMAT);
    put_vote(&mut out, &reply.vote);
    out.put_u8(u8::from(reply.vote_granted));
    put_log_id(&mut out, &reply.last_log_id);
    out.freeze()
}

/// Decodes the answer to a vote or pre-vote request.
pub(crate) fn decode_vote_reply(bytes: Bytes) -> Result<VoteResponse<TypeConfig>> {
    let mut input = Input::new("a vote reply", bytes)?;
    let vote = input.vote()?;
    let vote_granted = input.bool()?;
    let last_log_id = input.log_id()?;
    input.end()?;
    Ok(VoteResponse { vote, vote_granted, last_log_id })
}

/// Encodes a checkpoint on its way to a member that lags.
pub(crate) fn encode_snapshot(vote: &Vote, marker: &[u8], contents: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(32 + marker.len() + contents.len());
    out.put_u8(FORMAT);
    put_vote(&mut out, vote);
    put_len(&mut out, marker.len());
    out.put_slice(marker);
    out.put_slice(contents);
    out.freeze()
}

/// Decodes a received checkpoint into vote, marker and contents.
pub(crate) fn decode_snapshot(bytes: Bytes) -> Result<(Vote, Bytes, Bytes)> {
    let mut input = Input::new("a checkpoint message", bytes)?;
    let vote = input.vote()?;
    let length = input.u32()? as usize;
    let marker = input.take(length)?;
    Ok((vote, marker, input.rest()))
}

/// Encodes the answer to a checkpoint message.
pub(crate) fn encode_snapshot_reply(reply: &SnapshotResponse<TypeConfig>) -> Bytes {
    encode_vote(&reply.vote)
}

/// Decodes the answer to a checkpoint message.
pub(crate) fn decode_snapshot_reply(bytes: Bytes) -> Result<SnapshotResponse<TypeConfig>> {
    Ok(SnapshotResponse::new(decode_vote(bytes)?))
}

/// Encodes a leader's request to hand its leadership over.
pub(crate) fn encode_transfer(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(48);
    out.put_u8(FORMAT);
    put_vote(&mut out, request.from_leader());
    out.put_u64_le(*request.to_node_id());
    put_log_id(&mut out, &request.last_log_id().copied());
    out.freeze()
}

/// Decodes a leader's request to hand its leadership over.
pub(crate) fn decode_transfer(bytes: Bytes) -> Result<TransferLeaderRequest<TypeConfig>> {
    let mut input = Input::new("a leadership transfer", bytes)?;
    let from = input.vote()?;
    let to = input.u64()?;
    let last = input.log_id()?;
    input.end()?;
    Ok(TransferLeaderRequest::new(from, to, last))
}

/// Encodes the answer to a leadership transfer.
pub(crate) fn encode_transfer_reply(reply: &TransferLeaderResponse<TypeConfig>) -> Bytes {
    let mut out = BytesMut::with_capacity(40);
    out.put_u8(FORMAT);
    match reply {
        Ok(()) => out.put_u8(0),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            out.put_u8(1);
            put_vote(&mut out, expected);
            put_vote(&mut out, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            out.put_u8(2);
            put_log_id(&mut out, expected);
            put_log_id(&mut out, actual);
        }
    }
    out.freeze()
}

/// Decodes the answer to a leadership transfer.
pub(crate) fn decode_transfer_reply(bytes: Bytes) -> Result<TransferLeaderResponse<TypeConfig>> {
    let mut input = Input::new("a leadership transfer reply", bytes)?;
    let reply = match input.u8()? {
        0 => Ok(()),
        1 => Err(TransferLeaderError::VoteChanged { expected: input.vote()?, actual: input.vote()? }),
        2 => Err(TransferLeaderError::LogNotFlushed { expected: input.log_id()?, actual: input.log_id()? }),
        other => return Err(input.bad(format!("unknown outcome {other}"))),
    };
    input.end()?;
    Ok(reply)
}

fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
}

fn put_log_id(out: &mut BytesMut, id: &Option<LogId>) {
    match id {
        None => out.put_u8(0),
        Some(id) => {
            out.put_u8(1);
            out.put_u64_le(*id.leader_id);
            out.put_u64_le(id.index);
        }
    }
}

fn put_members(out: &mut BytesMut, membership: &Membership) {
    let configs = membership.get_joint_config();
    put_len(out, configs.len());
    for config in configs {
        put_len(out, config.len());
        for node in config {
            out.put_u64_le(*node);
        }
    }
    put_len(out, membership.nodes().count());
    for (id, node) in membership.nodes() {
        out.put_u64_le(*id);
        put_len(out, node.addr.len());
        out.put_slice(node.addr.as_bytes());
    }
}

fn put_len(out: &mut BytesMut, length: usize) {
    out.put_u32_le(to_u32(length));
}

/// Lengths inside one entry or message fit: the journal refuses entries of that size long before.
fn to_u32(length: usize) -> u32 {
    u32::try_from(length).expect("a part of a log entry or message is shorter than 4 GiB")
}

/// Reads a value front to back, with an error that says where it broke.
struct Input {
    what: &'static str,
    total: usize,
    bytes: Bytes,
}

impl Input {
    /// Starts reading a value and checks its format byte.
    fn new(what: &'static str, bytes: Bytes) -> Result<Input> {
        let mut input = Input { what, total: bytes.len(), bytes };
        match input.u8()? {
            FORMAT => Ok(input),
            other => Err(input.bad(format!("unknown format {other}"))),
        }
    }

    fn bad(&self, detail: String) -> Error {
        Error::Corrupt { what: self.what, detail: format!("{detail} at byte {}", self.total - self.bytes.len()) }
    }

    fn need(&self, length: usize) -> Result<()> {
        if self.bytes.len() < length {
            return Err(self.bad(format!("{length} bytes expected, {} left", self.bytes.len())));
        }
        Ok(())
    }

    fn u8(&mut self) -> Result<u8> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    fn bool(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.bad(format!("{other} is neither 0 nor 1"))),
        }
    }

    fn u32(&mut self) -> Result<u32> {
        self.need(4)?;
        Ok(self.bytes.get_u32_le())
    }

    fn u64(&mut self) -> Result<u64> {
        self.need(8)?;
        Ok(self.bytes.get_u64_le())
    }

    fn take(&mut self, length: usize) -> Result<Bytes> {
        self.need(length)?;
        Ok(self.bytes.split_to(length))
    }

    fn rest(&mut self) -> Bytes {
        let length = self.bytes.len();
        self.bytes.split_to(length)
    }

    fn end(&self) -> Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(self.bad(format!("{} bytes too many", self.bytes.len())))
    }

    fn log_id(&mut self) -> Result<Option<LogId>> {
        if !self.bool()? {
            return Ok(None);
        }
        let term = self.u64()?;
        Ok(Some(log_id(term, self.u64()?)))
    }

    fn vote(&mut self) -> Result<Vote> {
        let term = self.u64()?;
        let node = self.u64()?;
        let committed = self.bool()?;
        Ok(if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) })
    }

    fn members(&mut self) -> Result<Membership> {
        let mut configs = Vec::new();
        for _ in 0..self.u32()? {
            let mut config = BTreeSet::new();
            for _ in 0..self.u32()? {
                config.insert(self.u64()?);
            }
            configs.push(config);
        }
        let mut nodes = BTreeMap::new();
        for _ in 0..self.u32()? {
            let id = self.u64()?;
            let length = self.u32()? as usize;
            let address = self.take(length)?;
            let addr = String::from_utf8(address.to_vec()).map_err(|_| self.bad("an address is not UTF-8".into()))?;
            nodes.insert(id, BasicNode { addr });
        }
        // The membership of a node that never joined has neither configs nor nodes, which `new` would refuse.
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(configs, nodes).map_err(|error| self.bad(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Membership {
        let nodes: BTreeMap<u64, BasicNode> =
            [1, 2, 3, 9].map(|id| (id, BasicNode { addr: format!("node-{id}:7000") })).into();
        Membership::new(vec![[1, 2, 3].into(), [2, 3].into()], nodes).unwrap()
    }

    fn entries() -> Vec<Entry> {
        vec![
            Entry { log_id: log_id(1, 0), payload: Payload::Membership(members()) },
            Entry { log_id: log_id(7, 1), payload: Payload::Blank },
            Entry { log_id: log_id(u64::MAX, u64::MAX), payload: Payload::Normal(Command(Bytes::new())) },
            Entry { log_id: log_id(8, 2), payload: Payload::Normal(Command(Bytes::from_static(b"a\0b"))) },
        ]
    }

    /// RAFT-8: every value survives the round trip, and no prefix or extension of it decodes.
    fn check<T: PartialEq + std::fmt::Debug>(value: T, bytes: Bytes, decode: impl Fn(Bytes) -> Result<T>) {
        assert_eq!(decode(bytes.clone()).unwrap(), value);
        for cut in 0..bytes.len() {
            if let Ok(other) = decode(bytes.slice(..cut)) {
                // Only bytes that extend to the end (a command, a checkpoint) cannot notice the cut by themselves.
                assert_ne!(other, value);
            }
        }
        let mut other_format = bytes.to_vec();
        other_format[0] = FORMAT + 1;
        assert!(matches!(decode(other_format.into()), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn entries_round_trip() {
        for entry in entries() {
            let bytes = encode_entry(&entry);
            check(entry, bytes, decode_entry);
        }
    }

    #[test]
    fn the_bytes_of_an_entry_are_fixed() {
        // Journals of earlier versions must stay readable: this layout may be added to, never changed.
        let entry = Entry { log_id: log_id(2, 5), payload: Payload::Normal(Command(Bytes::from_static(b"xy"))) };
        assert_eq!(&encode_entry(&entry)[..], [1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, b'x', b'y']);
        let vote = Vote::new_committed(3, 4);
        assert_eq!(&encode_vote(&vote)[..], [1, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn votes_positions_and_markers_round_trip() {
        for vote in [Vote::new(0, 0), Vote::new(3, 9), Vote::new_committed(u64::MAX, 1)] {
            check(vote, encode_vote(&vote), decode_vote);
        }
        for position in [None, Some(log_id(4, 11))] {
            check(position, encode_position(&position), decode_position);
        }
        for marker in [
            (None, StoredMembership::default()),
            (Some(log_id(4, 11)), StoredMembership::new(Some(log_id(2, 7)), members())),
        ] {
            let bytes = encode_marker(&marker.0, &marker.1);
            check(marker, bytes, decode_marker);
        }
    }

    #[test]
    fn messages_round_trip() {
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(3, 4),
            prev_log_id: Some(log_id(2, 9)),
            entries: entries(),
            leader_commit: None,
        };
        let again = decode_append(encode_append(&request)).unwrap();
        assert_eq!(again.vote, request.vote);
        assert_eq!(again.prev_log_id, request.prev_log_id);
        assert_eq!(again.entries, request.entries);
        assert_eq!(again.leader_commit, request.leader_commit);

        for reply in [
            AppendEntriesResponse::Success,
            AppendEntriesResponse::PartialSuccess(Some(log_id(1, 2))),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(Vote::new(5, 6)),
        ] {
            let bytes = encode_append_reply(&reply);
            check(reply, bytes, decode_append_reply);
        }
        let request = VoteRequest { vote: Vote::new(5, 6), last_log_id: Some(log_id(4, 4)), leadership_transfer: true };
        check(request.clone(), encode_vote_request(&request), decode_vote_request);
        let reply = VoteResponse { vote: Vote::new(5, 6), vote_granted: true, last_log_id: None };
        check(reply.clone(), encode_vote_reply(&reply), decode_vote_reply);
        let snapshot = (Vote::new_committed(5, 6), Bytes::from_static(b"marker"), Bytes::from_static(b"contents"));
        let bytes = encode_snapshot(&snapshot.0, &snapshot.1, &snapshot.2);
        check(snapshot, bytes, decode_snapshot);
        let reply = SnapshotResponse::new(Vote::new(5, 6));
        check(reply.clone(), encode_snapshot_reply(&reply), decode_snapshot_reply);
        let request = TransferLeaderRequest::new(Vote::new_committed(5, 6), 2, Some(log_id(4, 4)));
        check(request.clone(), encode_transfer(&request), decode_transfer);
        for reply in [
            Ok(()),
            Err(TransferLeaderError::VoteChanged { expected: Vote::new(1, 1), actual: Vote::new(2, 2) }),
            Err(TransferLeaderError::LogNotFlushed { expected: Some(log_id(1, 1)), actual: None }),
        ] {
            let bytes = encode_transfer_reply(&reply);
            check(reply, bytes, decode_transfer_reply);
        }
    }
}
