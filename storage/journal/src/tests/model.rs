//! The journal against a plain map, with restarts in between.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Action {
    Append(Vec<usize>),
    Vote(u8),
    Committed(u8),
    /// Keeps so many entries, counted from the first.
    Truncate(usize),
    Clear,
    /// Purges so many entries, counted from the first; more than there are go beyond the end.
    Purge(usize, u8),
    Roll,
    Pump,
    Mark,
    Close,
    Kill,
    Read(usize, usize, usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => prop::collection::vec(prop_oneof![0_usize..100, 0_usize..3000, Just(8968_usize)], 0..4).prop_map(Action::Append),
        1 => any::<u8>().prop_map(Action::Vote),
        2 => any::<u8>().prop_map(Action::Committed),
        2 => (0_usize..30).prop_map(Action::Truncate),
        1 => Just(Action::Clear),
        2 => (0_usize..30, any::<u8>()).prop_map(|(count, marker)| Action::Purge(count, marker)),
        1 => Just(Action::Roll),
        6 => Just(Action::Pump),
        1 => Just(Action::Mark),
        1 => Just(Action::Close),
        1 => Just(Action::Kill),
        6 => (0_usize..40, 0_usize..10, 0_usize..10_000).prop_map(|(from, count, bytes)| Action::Read(from, count, bytes)),
    ]
}

fn run(actions: Vec<Action>) -> std::result::Result<(), TestCaseError> {
    let disk = SimDisk::new();
    // Small batches, so that some requests are written while others wait.
    let options = JournalOptions { batch_bytes: 4 << 10, ..small() };
    let (mut manual, _) = Manual::open_with(&disk, options.clone()).unwrap();
    let mut model = Contents::default();
    let mut requests = 0;
    let mut answered = 0;
    let mut distinct = 0_u64;
    for action in actions {
        let first = model.entries.keys().next().copied().or(model.next).unwrap_or(0);
        let mut done = || {
            requests += 1;
            manual.answers.callback(requests)
        };
        match action {
            Action::Append(sizes) => {
                let next = model.next.unwrap_or(3);
                let mut entries = Vec::new();
                for (index, bytes) in (next..).zip(sizes) {
                    distinct += 1;
                    let entry = payload(distinct, bytes);
                    model.append(index, entry.clone());
                    entries.push((LogIndex(index), entry));
                }
                manual.journal.append(entries, done()).unwrap();
            }
            Action::Vote(vote) => {
                model.vote = Some(Bytes::from(vec![vote]));
                manual.journal.save_vote(Bytes::from(vec![vote]), done()).unwrap();
            }
            Action::Committed(committed) => {
                model.committed = Some(Bytes::from(vec![committed; 3]));
                manual.journal.save_committed(Bytes::from(vec![committed; 3])).unwrap();
            }
            Action::Truncate(kept) => {
                let last = (first + kept as u64).checked_sub(1);
                if last >= model.purged.as_ref().map(|(index, _)| *index) {
                    model.truncate_after(last);
                    manual.journal.truncate_after(last.map(LogIndex), done()).unwrap();
                }
            }
            Action::Clear => {
                model.truncate_after(None);
                manual.journal.truncate_after(None, done()).unwrap();
            }
            Action::Purge(count, marker) => {
                if let Some(upto) = (first + count as u64).checked_sub(1) {
                    let marker = Bytes::from(vec![marker]);
                    model.purge(upto, marker.clone());
                    manual.journal.purge(LogIndex(upto), marker, done()).unwrap();
                }
            }
            Action::Roll => manual.journal.roll(done()).unwrap(),
            Action::Pump => {
                manual.writer.pump();
                check_answers(&manual, &mut answered)?;
            }
            Action::Mark => manual.writer.mark().unwrap(),
            Action::Close | Action::Kill => {
                if matches!(action, Action::Close) {
                    manual.writer.finish();
                } else {
                    while manual.writer.pump() {}
                }
                check_answers(&manual, &mut answered)?;
                prop_assert_eq!(answered, requests);
                disk.kill();
                let (opened, recovered) = Manual::open_with(&disk, options.clone()).unwrap();
                let found = Contents::of(&opened.journal, &recovered).unwrap();
                prop_assert_eq!(&found, &model);
                prop_assert_eq!(recovered.torn_bytes, 0);
                manual = opened;
                requests = 0;
                answered = 0;
            }
            Action::Read(from, count, bytes) => {
                let from = first.saturating_sub(2) + from as u64;
                let range = from..from + count as u64;
                let found = manual.journal.read(LogIndex(range.start)..LogIndex(range.end)).unwrap();
                let found: Vec<_> = found.into_iter().map(|(index, payload)| (index.0, payload)).collect();
                let expected: Vec<_> = model.entries.range(range.clone()).map(|(i, p)| (*i, p.clone())).collect();
                prop_assert_eq!(&found, &expected);
                let limited = manual.journal.read_limited(LogIndex(range.start)..LogIndex(range.end), bytes).unwrap();
                let sum: usize = limited.iter().map(|(_, payload)| payload.len()).sum();
                prop_assert!(limited.len() <= 1 || sum <= bytes);
                prop_assert_eq!(limited.is_empty(), expected.is_empty());
            }
        }
        let (first, last) = manual.journal.bounds();
        prop_assert_eq!(first.map(|index| index.0), model.entries.keys().next().copied());
        prop_assert_eq!(last.map(|index| index.0), model.entries.keys().last().copied());
    }
    Ok(())
}

/// The next requests are answered, in order, and well.
fn check_answers(manual: &Manual, answered: &mut usize) -> std::result::Result<(), TestCaseError> {
    for answer in manual.answers.take() {
        *answered += 1;
        prop_assert_eq!(answer, (*answered, true));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_map(actions in prop::collection::vec(action(), 1..80)) {
        run(actions)?;
    }
}
