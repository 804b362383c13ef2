//! One and several members, end to end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::{Classify, ErrorKind, LogIndex, Term};
use bytes::Bytes;
use futures::future::join_all;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use crate::adapter::Adapter;
use crate::log::LogStore;
use crate::testing::{Home, Ledger};
use crate::types::TypeConfig;
use crate::{Error, Loopback, Raft, RaftOptions, Role, Rpc};
use runtime::{DiskOp, Fault, FaultError};

/// How long anything may take that is only waited for.
const SOON: Duration = Duration::from_secs(20);

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test)
}

/// Options whose timeouts never fire, so that only what happens at once can pass.
fn patient(node_id: u64) -> RaftOptions {
    RaftOptions {
        election_timeout: Duration::from_secs(600)..Duration::from_secs(1200),
        heartbeat: Duration::from_millis(60),
        ..RaftOptions::single(node_id)
    }
}

fn command(text: impl ToString) -> Bytes {
    text.to_string().into()
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < SOON, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

struct Stores;

impl StoreBuilder<TypeConfig, LogStore, Adapter, Home> for Stores {
    async fn build(&self) -> Result<(Home, LogStore, Adapter), StorageError<TypeConfig>> {
        let home = Home::real();
        let (journal, recovered) = home.try_journal().unwrap();
        let store = LogStore::new(journal, recovered).unwrap();
        let machine = Adapter::new(Ledger::open(&home.disk, home.dir())).unwrap();
        Ok((home, store, machine))
    }
}

#[test]
fn openraft_suite_passes() {
    run(Suite::test_all(Stores)).unwrap();
}

#[test]
fn a_single_voter_leads_without_waiting() {
    run(async {
        let home = Home::new();
        let (raft, ledger) = home.open(patient(7)).await.unwrap();
        assert!(raft.is_leader());
        let term = raft.leading().unwrap();
        let done = raft.propose(command("a")).await.unwrap();
        assert_eq!((done.term, done.reply), (term, command(format!("{term}.{} a #1", done.index))));
        assert_eq!(raft.read_barrier().await.unwrap(), done.index);
        raft.shutdown().await.unwrap();

        // The second start takes the other way: the cluster is formed and must elect its only voter again.
        let (raft, again) = home.open(patient(7)).await.unwrap();
        assert!(raft.leading().unwrap() > term);
        assert_eq!(again.lines(), ledger.lines());
        let metrics = raft.metrics();
        assert_eq!((metrics.role, metrics.leader, metrics.voters), (Role::Leader, Some(7), vec![7]));
        assert_eq!(metrics.applied, metrics.last);
        raft.shutdown().await.unwrap();
        assert_eq!(raft.leading(), None);
    });
}

#[test]
fn commands_keep_the_order_of_the_calls() {
    run(async {
        let home = Home::new();
        let (raft, ledger) = home.open(patient(1)).await.unwrap();
        // Polled in the opposite order, and every third not at all.
        let mut futures: Vec<_> = (0..500).map(|n| (n, raft.propose(command(n)))).collect();
        futures.retain(|(n, _)| n % 3 != 0);
        let mut last = LogIndex(u64::MAX);
        for (n, future) in futures.into_iter().rev() {
            let done = future.await.unwrap();
            assert!(done.index < last);
            assert!(String::from_utf8_lossy(&done.reply).ends_with(&format!("#{}", n + 1)));
            last = done.index;
        }
        assert_eq!(ledger.lines(), (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
        raft.shutdown().await.unwrap();
    });
}

#[test]
fn a_restart_rebuilds_the_state_from_checkpoint_and_log() {
    run(async {
        let home = Home::new();
        let (raft, ledger) = home.open(patient(1)).await.unwrap();
        let mut before = LogIndex(0);
        for n in 0..10 {
            before = raft.propose(command(n)).await.unwrap().index;
        }
        let checkpoint = raft.checkpoint().await.unwrap();
        assert_eq!(raft.metrics().checkpoint, Some(before));
        assert_eq!(raft.metrics().purged, Some(before));
        for n in 10..20 {
            raft.propose(command(n)).await.unwrap();
        }
        // No shutdown: as after a kill.
        drop(raft);
        home.sim.kill();

        let (raft, again) = home.open(patient(1)).await.unwrap();
        assert_eq!(again.lines(), ledger.lines());
        assert_eq!(again.lines().len(), 20);
        // Only what follows the checkpoint was replayed.
        assert_eq!(again.applied().len(), 10);
        assert!(again.applied().iter().all(|index| *index > before.0));
        assert_eq!(raft.machine().current_checkpoint().unwrap(), checkpoint);
        raft.shutdown().await.unwrap();
        let (raft, again) = home.open(patient(1)).await.unwrap();
        assert_eq!(again.lines().len(), 20);
        raft.shutdown().await.unwrap();
    });
}

#[test]
fn a_checkpoint_pins_the_state_while_commands_go_on() {
    run(async {
        let home = Home::new();
        let (raft, _) = home.open(patient(1)).await.unwrap();
        let proposer = raft.clone();
        let writing = tokio::spawn(async move {
            for n in 0..300 {
                proposer.propose(command(n)).await.unwrap();
            }
        });
        let mut cut = None;
        for _ in 0..5 {
            raft.checkpoint().await.unwrap();
            assert!(raft.metrics().purged > cut);
            cut = raft.metrics().purged;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        // Two at once take turns.
        let (a, b) = tokio::join!(raft.checkpoint(), raft.checkpoint());
        assert!(a.is_ok() && b.is_ok());
        writing.await.unwrap();
        raft.shutdown().await.unwrap();
        let (raft, again) = home.open(patient(1)).await.unwrap();
        assert_eq!(again.lines(), (0..300).map(|n| n.to_string()).collect::<Vec<_>>());
        assert!(again.applied().len() < 300);
        raft.shutdown().await.unwrap();
    });
}

#[test]
fn a_failed_checkpoint_leaves_the_node_running() {
    run(async {
        let home = Home::new();
        let (raft, ledger) = home.open(patient(1)).await.unwrap();
        raft.propose(command("a")).await.unwrap();
        ledger.fail_checkpoints(true);
        let error = raft.checkpoint().await.unwrap_err();
        assert!(matches!(error, Error::Checkpoint(_)), "{error}");
        assert_eq!(raft.metrics().purged, None);
        raft.propose(command("b")).await.unwrap();
        ledger.fail_checkpoints(false);
        raft.checkpoint().await.unwrap();
        assert!(raft.metrics().purged.is_some());
        raft.shutdown().await.unwrap();
    });
}

#[test]
fn a_stale_term_is_refused() {
    run(async {
        let home = Home::new();
        let (raft, ledger) = home.open(patient(1)).await.unwrap();
        let term = raft.leading().unwrap();
        raft.propose_in(term, command("a")).await.unwrap();
        for other in [Term(term.0 - 1), Term(term.0 + 1)] {
            let error = raft.propose_in(other, command("b")).await.unwrap_err();
            assert!(matches!(error, Error::NotLeader { .. }), "{error}");
            assert_eq!(error.kind(), ErrorKind::Unavailable);
        }
        assert_eq!(ledger.lines(), ["a"]);
        raft.shutdown().await.unwrap();
    });
}

#[test]
fn a_shutdown_finishes_what_was_accepted() {
    run(async {
        let home = Home::new();
        let (raft, ledger) = home.open(patient(1)).await.unwrap();
        let accepted: Vec<_> = (0..200).map(|n| raft.propose(command(n))).collect();
        raft.shutdown().await.unwrap();
        for future in accepted {
            future.await.unwrap();
        }
        assert_eq!(ledger.lines().len(), 200);
        let error = raft.propose(command("late")).await.unwrap_err();
        assert!(matches!(error, Error::Shutdown), "{error}");
        assert!(matches!(raft.checkpoint().await, Err(Error::Shutdown)));
        assert!(matches!(raft.read_barrier().await, Err(Error::Shutdown)));
        raft.shutdown().await.unwrap();
    });
}

/// Options that count how often the node stopped by itself.
fn counting(options: RaftOptions) -> (RaftOptions, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let hook: crate::FatalHook = Arc::new(move |reason| {
        assert!(!reason.is_empty());
        counter.fetch_add(1, Ordering::SeqCst);
    });
    (RaftOptions { on_fatal: Some(hook), ..options }, count)
}

#[test]
fn a_panic_while_applying_stops_the_node() {
    run(async {
        let home = Home::new();
        let (options, stops) = counting(patient(1));
        let (raft, _) = home.open(options).await.unwrap();
        raft.propose(command("a")).await.unwrap();
        let error = raft.propose(command("panic")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Indeterminate);
        until("the hook", || stops.load(Ordering::SeqCst) == 1).await;
        let error = raft.propose(command("b")).await.unwrap_err();
        assert!(matches!(&error, Error::Fatal { reason } if reason.contains("asked to panic")), "{error}");
        assert_eq!(raft.leading(), None);
        assert!(matches!(raft.checkpoint().await, Err(Error::Fatal { .. })));
        raft.shutdown().await.unwrap();
        assert_eq!(stops.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn a_failed_sync_stops_the_node() {
    run(async {
        let home = Home::new();
        let (options, stops) = counting(patient(1));
        let (raft, ledger) = home.open(options).await.unwrap();
        raft.propose(command("a")).await.unwrap();
        home.sim.inject(Fault {
            op: DiskOp::Sync,
            path_contains: "journal".into(),
            after: 0,
            error: FaultError::Io,
            sticky: false,
        });
        let error = raft.propose(command("b")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Indeterminate, "{error}");
        until("the hook", || stops.load(Ordering::SeqCst) == 1).await;
        assert_eq!(ledger.lines(), ["a"]);
        let error = raft.propose(command("c")).await.unwrap_err();
        assert!(matches!(error, Error::Fatal { .. }), "{error}");
        raft.shutdown().await.unwrap();
        assert_eq!(stops.load(Ordering::SeqCst), 1);
        home.sim.kill();
        home.sim.clear_faults();
        let (raft, again) = home.open(patient(1)).await.unwrap();
        assert_eq!(again.lines()[0], "a");
        raft.shutdown().await.unwrap();
    });
}

#[test]
fn commands_in_flight_share_a_sync() {
    run(async {
        let home = Home::new();
        let (raft, ledger, journal) = home.open_with_journal(patient(1)).await.unwrap();
        raft.propose(command("warm")).await.unwrap();
        // The first command's sync is held; both others arrive behind it, one after the other, as two entries.
        let last = || journal.bounds().1.unwrap().0;
        let (syncs, start) = (journal.stats().syncs, last());
        home.sim.pause_syncs(true);
        let mut first = Box::pin(raft.propose(command("first")));
        until("a held sync", || home.sim.waiting_syncs() == 1).await;
        let a = raft.propose(command("a"));
        until("the second entry", || last() == start + 2).await;
        let b = raft.propose(command("b"));
        until("the third entry", || last() == start + 3).await;
        // Nothing is acknowledged or applied before it is durable.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(futures::poll!(&mut first).is_pending());
        assert_eq!(ledger.lines(), ["warm"]);
        home.sim.pause_syncs(false);
        let (first, a, b) = tokio::join!(first, a, b);
        assert_eq!([first, a, b].map(|done| done.unwrap().index.0), [start + 1, start + 2, start + 3]);
        assert_eq!(journal.stats().syncs, syncs + 2);
        raft.shutdown().await.unwrap();
    });
}

#[test]
fn what_was_acknowledged_survives_every_power_cut() {
    // The power goes after a number of disk operations that grows from run to run, until a run gets through.
    let mut cut = 0;
    loop {
        let through = run(async {
            let home = Home::new();
            let (raft, _) = home.open(patient(1)).await.unwrap();
            home.sim.power_off_after(cut);
            let mut acknowledged = 0;
            for round in 0..4 {
                let flight: Vec<_> = (0..5).map(|n| raft.propose(command(round * 5 + n))).collect();
                for future in flight {
                    match future.await {
                        Ok(_) => acknowledged += 1,
                        Err(error) => {
                            assert!(matches!(error.kind(), ErrorKind::Indeterminate | ErrorKind::Unavailable))
                        }
                    }
                }
                if round % 2 == 1 {
                    // Fails when the power is gone.
                    let _ = raft.checkpoint().await;
                }
            }
            raft.shutdown().await.unwrap();
            home.sim.crash(cut);
            let (raft, ledger) = home.open(patient(1)).await.unwrap();
            let lines = ledger.lines();
            assert!(lines.len() >= acknowledged, "cut {cut}: {acknowledged} acknowledged, {} found", lines.len());
            assert_eq!(lines, (0..lines.len()).map(|n| n.to_string()).collect::<Vec<_>>());
            raft.propose(command("on")).await.unwrap();
            raft.shutdown().await.unwrap();
            acknowledged == 20
        });
        if through && cut > 60 {
            break;
        }
        cut += 1;
    }
}

#[test]
fn a_command_that_fits_no_entry_is_refused() {
    run(async {
        let home = Home::new();
        let (raft, ledger, journal) = home.open_with_journal(patient(1)).await.unwrap();
        let limit = journal.max_entry_bytes() - crate::codec::ENTRY_HEADER;
        let error = raft.propose(Bytes::from(vec![b'x'; limit + 1])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        raft.propose(Bytes::from(vec![b'x'; limit])).await.unwrap();
        assert_eq!(ledger.lines().len(), 1);
        raft.shutdown().await.unwrap();
    });
}

#[test]
fn a_clean_stop_is_not_reported_as_fatal() {
    run(async {
        let home = Home::new();
        let (options, stops) = counting(patient(1));
        let (raft, _) = home.open(options).await.unwrap();
        raft.propose(command("a")).await.unwrap();
        raft.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(stops.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn options_are_checked() {
    run(async {
        let home = Home::new();
        let swapped = RaftOptions { heartbeat: Duration::from_secs(1), ..RaftOptions::single(1) };
        assert!(matches!(home.open(swapped).await, Err(Error::Options(_))));
        let stranger = RaftOptions { members: BTreeMap::from([(2, String::new())]), ..patient(1) };
        assert!(matches!(home.open(stranger).await, Err(Error::Options(_))));
        // The refused start left nothing behind.
        let (raft, _) = home.open(patient(1)).await.unwrap();
        raft.shutdown().await.unwrap();
        // The log belongs to another node.
        assert!(matches!(home.open(patient(2)).await, Err(Error::Options(_))));
    });
}

fn addresses(ids: &[u64]) -> BTreeMap<u64, String> {
    ids.iter().map(|id| (*id, format!("member-{id}"))).collect()
}

/// Three members in one process.
struct Cluster {
    net: Loopback,
    homes: BTreeMap<u64, Home>,
    members: BTreeMap<u64, (Raft, Arc<Ledger>)>,
}

impl Cluster {
    async fn start() -> Cluster {
        let net = Loopback::default();
        let homes = [1, 2, 3].map(|id| (id, Home::new())).into();
        let mut cluster = Cluster { net, homes, members: BTreeMap::new() };
        for id in [1, 2, 3] {
            cluster.open(id).await;
        }
        cluster
    }

    async fn open(&mut self, id: u64) {
        self.open_with(id, &[1, 2, 3]).await;
    }

    async fn open_with(&mut self, id: u64, first: &[u64]) {
        let options = RaftOptions::cluster(id, addresses(first), self.net.member(id));
        let (raft, ledger) = self.homes[&id].open(options).await.unwrap();
        self.net.attach(id, raft.clone());
        self.members.insert(id, (raft, ledger));
    }

    /// Stops a member without letting it finish anything with the others.
    async fn kill(&mut self, id: u64) {
        self.net.detach(id);
        let (raft, _) = self.members.remove(&id).unwrap();
        raft.shutdown().await.unwrap();
    }

    fn raft(&self, id: u64) -> &Raft {
        &self.members[&id].0
    }

    /// The member that leads, among those that can reach a majority.
    async fn leader(&self, among: &[u64]) -> u64 {
        let start = Instant::now();
        loop {
            for id in among {
                if let Some((raft, _)) = self.members.get(id)
                    && raft.leading().is_some()
                    && raft.read_barrier().await.is_ok()
                {
                    return *id;
                }
            }
            assert!(start.elapsed() < SOON, "no leader");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Proposes on whoever leads, again after every refusal.
    async fn propose(&self, among: &[u64], text: impl ToString) {
        loop {
            let leader = self.leader(among).await;
            match self.raft(leader).propose(command(text.to_string())).await {
                Ok(_) => return,
                Err(Error::NotLeader { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn agree(&self, lines: usize) -> Vec<String> {
        until("agreement", || self.members.values().all(|(_, ledger)| ledger.lines().len() == lines)).await;
        let first = self.members.values().next().unwrap().1.lines();
        for (_, ledger) in self.members.values() {
            assert_eq!(ledger.lines(), first);
        }
        first
    }

    async fn stop(mut self) {
        for id in [1, 2, 3] {
            if self.members.contains_key(&id) {
                self.kill(id).await;
            }
        }
    }
}

#[test]
fn three_members_survive_their_leader() {
    run(async {
        let mut cluster = Cluster::start().await;
        let all = [1, 2, 3];
        for n in 0..10 {
            cluster.propose(&all, n).await;
        }
        let old = cluster.leader(&all).await;
        let term = cluster.raft(old).term();
        // A follower refuses and names the leader.
        let follower = all.into_iter().find(|id| *id != old).unwrap();
        cluster.raft(follower).wait_ready(SOON).await.unwrap();
        match cluster.raft(follower).propose(command("x")).await {
            Err(Error::NotLeader { leader, address }) => {
                assert_eq!((leader, address), (Some(old), Some(format!("member-{old}"))));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(cluster.raft(old).metrics().voters, all);

        cluster.kill(old).await;
        for n in 10..20 {
            cluster.propose(&all, n).await;
        }
        let new = cluster.leader(&all).await;
        assert!(cluster.raft(new).term() > term);
        cluster.open(old).await;
        cluster.propose(&all, 20).await;
        assert_eq!(cluster.agree(21).await, (0..21).map(|n| n.to_string()).collect::<Vec<_>>());
        assert!(cluster.net.delivered(Rpc::PreVote) > 0);
        cluster.stop().await;
    });
}

#[test]
fn a_member_behind_the_start_of_the_log_gets_the_checkpoint() {
    run(async {
        let mut cluster = Cluster::start().await;
        let all = [1, 2, 3];
        cluster.propose(&all, 0).await;
        cluster.agree(1).await;
        let leader = cluster.leader(&all).await;
        let behind = all.into_iter().find(|id| *id != leader).unwrap();
        let rest: Vec<u64> = all.into_iter().filter(|id| *id != behind).collect();
        cluster.kill(behind).await;
        for n in 1..30 {
            cluster.propose(&rest, n).await;
        }
        for id in &rest {
            cluster.raft(*id).checkpoint().await.unwrap();
        }
        cluster.propose(&rest, 30).await;
        cluster.open(behind).await;
        cluster.agree(31).await;
        assert!(cluster.net.delivered(Rpc::Checkpoint) > 0);
        let ledger = &cluster.members[&behind].1;
        assert!(ledger.applied().len() < 30, "the entries were sent one by one: {:?}", ledger.applied());
        // What was installed is what the next start begins with.
        cluster.kill(behind).await;
        cluster.open(behind).await;
        cluster.propose(&all, 31).await;
        cluster.agree(32).await;
        cluster.stop().await;
    });
}

#[test]
fn a_member_that_was_cut_off_does_not_unseat_the_leader() {
    run(async {
        let cluster = Cluster::start().await;
        let all = [1, 2, 3];
        cluster.propose(&all, 0).await;
        cluster.agree(1).await;
        let leader = cluster.leader(&all).await;
        let term = cluster.raft(leader).term();
        let alone = all.into_iter().find(|id| *id != leader).unwrap();
        cluster.net.isolate(alone, true);
        // Several election timeouts; without pre-votes each would raise the term.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(cluster.raft(alone).term(), term);
        cluster.net.isolate(alone, false);
        cluster.propose(&all, 1).await;
        cluster.agree(2).await;
        assert_eq!(cluster.leader(&all).await, leader);
        assert_eq!(cluster.raft(leader).term(), term);
        cluster.stop().await;
    });
}

#[test]
fn a_deposed_leader_says_that_it_does_not_know() {
    run(async {
        let cluster = Cluster::start().await;
        let all = [1, 2, 3];
        cluster.propose(&all, 0).await;
        cluster.agree(1).await;
        let old = cluster.leader(&all).await;
        let rest: Vec<u64> = all.into_iter().filter(|id| *id != old).collect();
        cluster.net.isolate(old, true);
        // Taken into the log of the cut-off leader, where no quorum will ever see it.
        let lost = cluster.raft(old).propose(command("lost"));
        let lost = tokio::spawn(lost);
        cluster.propose(&rest, 1).await;
        assert!(cluster.raft(old).read_barrier().await.is_err());
        cluster.net.isolate(old, false);
        let error = lost.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Indeterminate, "{error}");
        assert_eq!(cluster.agree(2).await, ["0", "1"]);
        cluster.stop().await;
    });
}

#[test]
fn many_in_flight_on_three_members() {
    run(async {
        let cluster = Cluster::start().await;
        let all = [1, 2, 3];
        let leader = cluster.leader(&all).await;
        let raft = cluster.raft(leader);
        let done = join_all((0..1000).map(|n| raft.propose(command(n)))).await;
        assert!(done.iter().all(|done| done.is_ok()));
        assert_eq!(cluster.agree(1000).await, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
        cluster.stop().await;
    });
}

#[test]
fn a_single_voter_grows_to_three() {
    run(async {
        let net = Loopback::default();
        let homes: BTreeMap<u64, Home> = [1, 2, 3].map(|id| (id, Home::new())).into();
        let mut cluster = Cluster { net, homes, members: BTreeMap::new() };
        // Two wait to be taken in; meanwhile the first serves alone and cuts its log.
        cluster.open_with(1, &[1]).await;
        for id in [2, 3] {
            cluster.open_with(id, &[]).await;
        }
        for n in 0..5 {
            cluster.propose(&[1], n).await;
        }
        let first = cluster.raft(1).clone();
        first.checkpoint().await.unwrap();
        cluster.propose(&[1], 5).await;
        first.change_members(addresses(&[1, 2, 3])).await.unwrap();
        assert_eq!(first.metrics().voters, [1, 2, 3]);
        cluster.agree(6).await;
        cluster.kill(1).await;
        cluster.propose(&[2, 3], 6).await;
        cluster.open_with(1, &[]).await;
        cluster.agree(7).await;
        // And back to two.
        let leader = cluster.leader(&[1, 2, 3]).await;
        let gone = if leader == 3 { 2 } else { 3 };
        let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != gone).collect();
        cluster.raft(leader).change_members(addresses(&rest)).await.unwrap();
        assert_eq!(cluster.raft(leader).metrics().voters, rest);
        let follower = rest.into_iter().find(|id| *id != leader).unwrap();
        let error = cluster.raft(follower).change_members(addresses(&[1])).await.unwrap_err();
        assert!(matches!(error, Error::NotLeader { .. }), "{error}");
        let error = cluster.raft(leader).change_members(BTreeMap::new()).await.unwrap_err();
        assert!(matches!(error, Error::Members(_)), "{error}");
        cluster.stop().await;
    });
}

#[test]
fn an_idle_single_voter_goes_on_leading() {
    run(async {
        let home = Home::new();
        let short = Duration::from_millis(20);
        let options =
            RaftOptions { election_timeout: short * 3..short * 5, heartbeat: short, ..RaftOptions::single(1) };
        let (raft, _) = home.open(options).await.unwrap();
        let term = raft.term();
        // Nobody acknowledges heartbeats, and yet the lease must not run out.
        tokio::time::sleep(short * 20).await;
        raft.propose_in(term, command("a")).await.unwrap();
        assert_eq!(raft.leading(), Some(term));
        raft.read_barrier().await.unwrap();
        raft.shutdown().await.unwrap();
    });
}

#[test]
fn dropping_all_clones_stops_the_node() {
    run(async {
        let home = Home::new();
        let (raft, ledger) = home.open(patient(1)).await.unwrap();
        let pending = raft.propose(command("a"));
        let leading = raft.watch_leading();
        assert!(leading.borrow().is_some());
        drop(raft);
        // What was proposed before may or may not have got through, but its proposer learns that it ended.
        let _ = pending.await;
        until("the end of the lead", || leading.borrow().is_none()).await;
        until("the release of the journal", || home.try_journal().is_ok()).await;
        let (raft, again) = home.open(patient(1)).await.unwrap();
        assert!(again.lines().starts_with(&ledger.lines()));
        raft.shutdown().await.unwrap();
    });
}

#[test]
fn damaged_markers_are_refused() {
    run(async {
        let home = Home::new();
        let (journal, mut recovered) = home.try_journal().unwrap();
        recovered.vote = Some(Bytes::from_static(b"\x01nonsense"));
        let ledger = Ledger::open(&home.disk, home.dir());
        let error = Raft::open(journal, recovered, ledger, patient(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    });
}
