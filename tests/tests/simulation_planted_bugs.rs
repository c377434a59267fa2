//! The simulation finds what it is there to find: each planted bug, within a bounded number of
//! worlds that are innocent without it.

use std::collections::BTreeMap;

use orimono_tests::simulation::{self, Bug, Checker};

/// Worlds in which a bug must be found.
const WORLDS: u64 = 300;

/// Finds a bug; returns the seeds that it took, and what found it.
fn find(bug: Bug) -> Option<(u64, Checker, String)> {
    (0..WORLDS).find_map(|seed| {
        let guilt = simulation::run(seed, Some(bug), false).guilt?;
        Some((seed, guilt.checker, guilt.what))
    })
}

#[test]
fn every_planted_bug_is_found_and_the_honest_worlds_are_innocent() {
    // Assertions are findings here, and not to be printed.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    let mut last = 0;
    let mut checkers: BTreeMap<Checker, usize> = BTreeMap::new();
    for bug in Bug::ALL {
        match find(bug) {
            Some((seed, checker, what)) => {
                println!("{bug:?}: seed {seed}, {checker:?}: {what}");
                *checkers.entry(checker).or_default() += 1;
                last = last.max(seed);
            }
            None => missed.push(bug),
        }
    }
    println!("{checkers:?}");
    std::panic::set_hook(hook);
    let (_, guilty) = simulation::run_all(0..last + 1);
    assert!(guilty.is_empty(), "without a bug: {guilty:?}");
    let checkers_of_rules = [
        Checker::Order,
        Checker::Window,
        Checker::Credit,
        Checker::Epoch,
        Checker::Stale,
        Checker::Liveness,
        Checker::Promise,
        Checker::SessionEnd,
        Checker::Assertion,
    ];
    let idle: Vec<_> = checkers_of_rules
        .into_iter()
        .filter(|checker| !checkers.contains_key(checker))
        .collect();
    assert!(idle.is_empty(), "checkers that found nothing: {idle:?}");
    assert!(
        missed.is_empty(),
        "not found in {WORLDS} worlds: {missed:?}"
    );
}
