//! Whole fabrics under faults in virtual time; see `orimono_tests::simulation`.

use orimono_tests::simulation;

/// Worlds of a usual run: about 20 s of one core.
const WORLDS: u64 = 1000;
/// Worlds with `ORIMONO_TEST_FULL`.
const WORLDS_FULL: u64 = 100_000;

fn seed_of_environment() -> Option<u64> {
    std::env::var("ORIMONO_SEED").ok()?.parse().ok()
}

#[test]
fn worlds_are_innocent() {
    let full = std::env::var_os("ORIMONO_TEST_FULL").is_some();
    let seeds = match seed_of_environment() {
        Some(seed) => seed..seed + 1,
        None if full => 0..WORLDS_FULL,
        None => 0..WORLDS,
    };
    let count = seeds.end - seeds.start;
    let (counters, guilty) = simulation::run_all(seeds);
    println!("{count} worlds: {counters:?}");
    for (seed, guilt) in &guilty {
        println!("seed {seed}: {:?}: {}", guilt.checker, guilt.what);
        println!("  cargo xtask sim --seed {seed} --trace");
    }
    assert!(
        guilty.is_empty(),
        "{} of {count} worlds are guilty",
        guilty.len()
    );
    if count > 1 {
        // Worlds in which nothing happens find nothing.
        let happened = [
            counters.delivered,
            counters.replayed,
            counters.ignored,
            counters.answered,
            counters.aborted,
            counters.paths_lost,
            counters.path_changes,
            counters.promises,
        ];
        assert!(happened.iter().all(|it| *it > count / 10), "{counters:?}");
        assert!(counters.sessions > count);
    }
}

#[test]
fn the_same_seed_gives_the_same_world() {
    for seed in 0..40 {
        let (one, other) = (
            simulation::run(seed, None, true),
            simulation::run(seed, None, true),
        );
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_eq!(one.counters, other.counters, "seed {seed}");
    }
}
