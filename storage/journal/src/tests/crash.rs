//! Power cuts at every kind of moment, on a disk that loses what it may lose.
//!
//! A run is a story of several lives of one journal. Every life makes random requests until the power goes at a random
//! operation, a write or a sync fails, the process is killed, or the journal is closed. What the next life finds must be what some prefix of the
//! requests led to, and no confirmed request may lie outside that prefix.

use runtime::{DiskOp, Fault, FaultError, SimRng};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Entry(u64, Bytes),
    Vote(Bytes),
    Committed(Bytes),
    Truncate(Option<u64>),
    Purge(u64, Bytes),
}

impl Contents {
    fn take_step(&mut self, step: &Step) {
        match step.clone() {
            Step::Entry(index, payload) => self.append(index, payload),
            Step::Vote(vote) => self.vote = Some(vote),
            Step::Committed(committed) => self.committed = Some(committed),
            Step::Truncate(last) => self.truncate_after(last),
            Step::Purge(upto, marker) => self.purge(upto, marker),
        }
    }
}

struct Story {
    disk: SimDisk,
    rng: SimRng,
    /// What the current life found.
    found: Contents,
    /// What it asked for since, and how much of that was confirmed.
    steps: Vec<Step>,
    confirmed: usize,
    /// Short lives, often cut short while they start.
    hasty: bool,
}

fn story(seed: u64, ignored: Option<&str>) -> Result<SimDisk, String> {
    let disk = SimDisk::new();
    if let Some(site) = ignored {
        disk.ignore_syncs(site);
    }
    let mut rng = SimRng::new(seed);
    let hasty = rng.chance(30);
    let mut story = Story { disk, rng, found: Contents::default(), steps: Vec::new(), confirmed: 0, hasty };
    let lives = 3 + story.rng.below(5);
    for life in 0..lives {
        story.live().map_err(|what| format!("seed {seed}, life {life}: {what}"))?;
    }
    Ok(story.disk)
}

impl Story {
    fn live(&mut self) -> Result<(), String> {
        let reserve_segments = if self.hasty { 0 } else { self.rng.below(3) as usize };
        let options = JournalOptions { reserve_segments, ..small() };
        // Starting may be cut short too.
        if self.rng.chance(if self.hasty { 70 } else { 30 }) {
            self.disk.power_off_after(self.rng.below(16));
            let opened = Manual::open_with(&self.disk, options.clone());
            if let Err(error @ (Error::Corrupt { .. } | Error::Version { .. })) = opened {
                return Err(error.to_string());
            }
            drop(opened);
            self.end();
        }
        let (mut manual, recovered) = Manual::open_with(&self.disk, options).map_err(|error| error.with_cause())?;
        let found = Contents::of(&manual.journal, &recovered).map_err(|error| error.to_string())?;
        self.check(found)?;

        if self.rng.chance(70) {
            self.disk.power_off_after(self.rng.below(60));
        }
        if self.rng.chance(15) {
            let op = if self.rng.chance(70) { DiskOp::Sync } else { DiskOp::Write };
            let after = self.rng.below(20);
            let path_contains = "segment".to_owned();
            self.disk.inject(Fault { op, path_contains, after, error: FaultError::Io, sticky: false });
        }
        let mut expected = self.found.clone();
        let batches = self.rng.below(if self.hasty { 3 } else { 25 });
        for _ in 0..batches {
            for _ in 0..=self.rng.below(4) {
                self.request(&manual, &mut expected)?;
            }
            manual.writer.pump();
            match self.rng.below(5) {
                0 => drop(manual.writer.mark()),
                1 => drop(manual.writer.mark().and_then(|()| manual.writer.sync_mark())),
                _ => {}
            }
            for (steps, ok) in manual.answers.take() {
                if ok {
                    self.confirmed = self.confirmed.max(steps);
                }
            }
            if manual.writer.shared.check().is_err() {
                break;
            }
        }
        if self.rng.chance(20) {
            manual.close();
        }
        self.end();
        Ok(())
    }

    fn end(&mut self) {
        self.disk.clear_faults();
        if self.rng.chance(60) {
            self.disk.crash(self.rng.next_u64());
        } else {
            self.disk.kill();
        }
    }

    fn request(&mut self, manual: &Manual, expected: &mut Contents) -> Result<(), String> {
        let before = self.steps.len();
        let journal = &manual.journal;
        let mut next = expected.next.unwrap_or(1);
        let kind = self.rng.below(20);
        if kind < 13 {
            let mut entries = Vec::new();
            for _ in 0..=self.rng.below(3) {
                // Few different payloads per index: repeating exactly what was torn away must be harmless.
                let bytes = [10, 300, 5000, 8000][self.rng.below(4) as usize];
                let entry = payload(next, bytes);
                entries.push((LogIndex(next), entry.clone()));
                self.steps.push(Step::Entry(next, entry));
                next += 1;
            }
            let done = manual.answers.callback(self.steps.len());
            self.answered(journal.append(entries, done), before)?;
        } else {
            let text = Bytes::from(format!("{}", self.rng.below(3)));
            let step = match kind {
                13 | 14 => Step::Vote(text),
                15 | 16 => Step::Committed(text),
                17 => {
                    let lowest = expected.purged.as_ref().map_or(0, |(index, _)| *index);
                    let last = lowest + self.rng.below(next.saturating_sub(lowest) + 1);
                    Step::Truncate((self.rng.below(8) > 0).then_some(last))
                }
                _ => {
                    let lowest = expected.purged.as_ref().map_or(0, |(index, _)| *index);
                    let upto = (lowest + self.rng.below(next.saturating_sub(lowest) + 1)).min(next + 2);
                    Step::Purge(upto, text)
                }
            };
            self.steps.push(step.clone());
            let done = manual.answers.callback(self.steps.len());
            let asked = match step {
                Step::Vote(vote) => journal.save_vote(vote, done),
                Step::Committed(committed) => journal.save_committed(committed),
                Step::Truncate(last) => journal.truncate_after(last.map(LogIndex), done),
                Step::Purge(upto, marker) => journal.purge(LogIndex(upto), marker, done),
                Step::Entry(..) => Ok(()),
            };
            self.answered(asked, before)?;
        }
        let seen = journal.read(LogIndex(0)..LogIndex(u64::MAX));
        for step in &self.steps[before..] {
            expected.take_step(step);
        }
        // After a failure nothing can be read any more.
        if let Ok(seen) = seen {
            let seen: BTreeMap<u64, Bytes> = seen.into_iter().map(|(index, payload)| (index.0, payload)).collect();
            if seen != expected.entries {
                return Err(format!("readers see {:?}, not {:?}", seen.keys(), expected.entries.keys()));
            }
        }
        Ok(())
    }

    fn answered(&mut self, asked: Result<()>, before: usize) -> Result<(), String> {
        match asked {
            Ok(()) => Ok(()),
            Err(Error::Poisoned { .. }) => {
                self.steps.truncate(before);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// What was found must be what a prefix of the requests led to, with everything confirmed inside.
    fn check(&mut self, found: Contents) -> Result<(), String> {
        let mut state = self.found.clone();
        let mut fits = (self.confirmed == 0 && state == found).then(|| state.clone());
        for (at, step) in self.steps.iter().enumerate() {
            state.take_step(step);
            if at + 1 >= self.confirmed && state == found {
                fits = Some(state.clone());
            }
        }
        let Some(fits) = fits else {
            let keys: Vec<_> = found.entries.keys().collect();
            return Err(format!(
                "{} steps, {} confirmed, last {:?}; found {keys:?} {:?} {:?} {:?}",
                self.steps.len(),
                self.confirmed,
                self.steps.last().map(|step| format!("{step:?}").chars().take(40).collect::<String>()),
                found.vote,
                found.committed,
                found.purged
            ));
        };
        self.found = fits;
        self.steps.clear();
        self.confirmed = 0;
        Ok(())
    }
}

/// `LATTICE_SEEDS` makes the run longer.
#[test]
fn confirmed_requests_survive_and_nothing_follows_a_gap() {
    let seeds = std::env::var("LATTICE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(400);
    for seed in 0..seeds {
        if let Err(what) = story(seed, None) {
            panic!("{what}");
        }
    }
}

/// Storage rule 5: removing any one sync call must make a test fail.
#[test]
fn every_sync_is_needed() {
    let mut sites = std::collections::BTreeSet::new();
    for seed in 0..40 {
        sites.extend(story(seed, None).unwrap().sync_sites().into_keys());
    }
    // This one protects against damage, not against a crash; see `damage::a_synced_mark_outlives_a_crash`.
    assert!(sites.remove("journal.mark"));
    assert!(sites.len() >= 8, "{sites:?}");
    for site in sites {
        let failing = (0..1000).find(|seed| story(*seed, Some(&site)).is_err());
        assert!(failing.is_some(), "nothing fails without the syncs of {site}");
    }
}

#[test]
fn stories_repeat_exactly() {
    for seed in [3, 14, 15] {
        let contents = |disk: SimDisk| {
            disk.files().into_iter().map(|(path, _)| runtime::read_file(&disk, &path).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(contents(story(seed, None).unwrap()), contents(story(seed, None).unwrap()));
    }
}
