//! The bodies of the fuzz targets over the committed corpus and a fixed run of random bytes.
//!
//! `docs/fuzzing.md` says how to let them run for longer.

#[allow(missing_docs, unreachable_pub, dead_code)] // It is a crate of its own when the fuzzer builds it.
#[path = "../fuzz/src/lib.rs"]
mod bodies;

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
};

use bodies::{TARGETS, Target, wire::Random};

/// Set to write the corpus anew instead of comparing it.
const WRITE: &str = "PINION_WRITE_CORPUS";

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target of that name")
}

fn directory(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

fn committed(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory(target)).expect("a corpus");
    let entries = entries.map(|entry| entry.expect("an entry"));
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.map(|entry| (name(&entry), fs::read(entry.path()).expect("a file"))).collect()
}

/// Runs the body and says which bytes it did not like.
fn try_bytes(target: &Target, name: &str, bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))) {
        eprintln!("{} does not like {name}: b\"{}\"", target.name, bytes.escape_ascii());
        resume_unwind(panic);
    }
}

/// The corpus, then its files with a few bytes changed, and random bytes.
fn check(name: &str, random_runs: usize) {
    let target = target(name);
    let corpus = committed(target);
    for (name, bytes) in &corpus {
        try_bytes(target, name, bytes);
    }
    let corpus: Vec<_> = corpus.values().collect();
    let mut random = Random::new(name.len() as u64);
    for run in 0..random_runs {
        let mut bytes = if run % 4 == 0 {
            let len = random.below(120);
            random.bytes(len)
        } else {
            corpus[random.below(corpus.len())].clone()
        };
        for _ in 0..random.below(6) {
            if bytes.is_empty() {
                break;
            }
            let at = random.below(bytes.len());
            match random.below(5) {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, random.below(256) as u8),
                2 => bytes.truncate(at),
                3 => {
                    let other = corpus[random.below(corpus.len())];
                    let from = random.below(other.len() + 1);
                    bytes.splice(at..at, other[from..].iter().copied());
                }
                _ => bytes[at] = random.below(256) as u8,
            }
        }
        try_bytes(target, &format!("random run {run}"), &bytes);
    }
}

#[test]
fn the_committed_corpus_is_what_the_seeds_are() {
    for target in &TARGETS {
        let seeds: BTreeMap<_, _> = (target.seeds)().into_iter().collect();
        if std::env::var_os(WRITE).is_some() {
            fs::create_dir_all(directory(target)).expect("a directory");
            for (name, bytes) in &seeds {
                fs::write(directory(target).join(name), bytes).expect("a file");
            }
        }
        let corpus = committed(target);
        for (name, bytes) in &seeds {
            assert_eq!(corpus.get(name), Some(bytes), "{} {name}: set {WRITE}=1", target.name);
        }
    }
}

#[test]
fn startup() {
    check("startup", 1000);
}

#[test]
fn connect() {
    check("connect", 1000);
}

#[test]
fn scram() {
    check("scram", 2000);
}

#[test]
fn client_messages() {
    check("client_messages", 1000);
}

#[test]
fn server_messages() {
    check("server_messages", 1000);
}

#[test]
fn mysql_accept() {
    check("mysql_accept", 500);
}

#[test]
fn mysql_connect() {
    check("mysql_connect", 1000);
}

#[test]
fn mysql_client_messages() {
    check("mysql_client_messages", 2000);
}

#[test]
fn mysql_server_messages() {
    check("mysql_server_messages", 2000);
}

#[test]
fn mysql_classify() {
    check("mysql_classify", 2000);
}

#[test]
fn classify() {
    check("classify", 1000);
}
