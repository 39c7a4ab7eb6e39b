//! The parent: kills children at fail points or at random, and counts.

use crate::board::Board;
use crate::child::Orders;
use crate::fire::Rng;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};

/// How a child ended.
#[derive(Debug, PartialEq)]
pub enum End {
    /// Killed at this fail point.
    Killed(String),
    /// Killed by the parent.
    KilledFromOutside,
    Finished,
}

pub struct Fire {
    pub rng: Rng,
    pub dir: PathBuf,
    pub log: PathBuf,
    pub names: u64,
    /// By fail point.
    pub kills: BTreeMap<String, u64>,
    pub kills_random: u64,
    pub kills_by_scenario: BTreeMap<&'static str, u64>,
    pub scenario: &'static str,
    /// Highest occurrence that is tried of each point while writing; 0 where it was never reached.
    pub reach: BTreeMap<String, u64>,
    /// Children that came to their end without reaching this point even once.
    pub misses: BTreeMap<String, u64>,
}

impl Fire {
    pub fn total(&self) -> u64 {
        self.kills.values().sum::<u64>() + self.kills_random
    }

    pub fn new_path(&mut self, what: &str) -> PathBuf {
        self.names += 1;
        self.dir.join(format!("{what}-{}", self.names))
    }

    pub fn spawn(&self, orders: &Orders, board: &Board, fail: Option<&str>) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .env("CHRONICLE_CHILD", orders.mode)
            .env("CHRONICLE_CHILD_QUEUE", &orders.queue)
            .env("CHRONICLE_CHILD_BOARD", &board.path)
            .env("CHRONICLE_CHILD_SEED", orders.seed.to_string())
            .env("CHRONICLE_CHILD_OPERATIONS", orders.operations.to_string())
            .env("CHRONICLE_CHILD_CHECKSUM", u8::from(orders.checksum).to_string())
            .env("CHRONICLE_CHILD_PROVISIONED", u8::from(orders.provisioned).to_string())
            .env("CHRONICLE_CHILD_PAUSES", u8::from(orders.pauses).to_string())
            .env("CHRONICLE_CHILD_READER", &orders.reader)
            .env("CHRONICLE_FAIL_LOG", &self.log);
        if let Some(fail) = fail {
            command.env("CHRONICLE_FAIL", fail);
        }
        command.spawn().unwrap()
    }

    pub fn ended(&mut self, status: ExitStatus, from_outside: bool) -> End {
        if status.success() {
            return End::Finished;
        }
        assert_eq!(status.signal(), Some(libc::SIGKILL), "the child has failed: {status}");
        *self.kills_by_scenario.entry(self.scenario).or_default() += 1;
        if from_outside {
            self.kills_random += 1;
            return End::KilledFromOutside;
        }
        let log = std::fs::read_to_string(&self.log).unwrap();
        std::fs::remove_file(&self.log).unwrap();
        let point = log.trim_end().to_owned();
        assert!(!point.is_empty() && !point.contains('\n'), "one kill at a time: {point:?}");
        *self.kills.entry(point.clone()).or_default() += 1;
        End::Killed(point)
    }

    pub fn run(&mut self, orders: &Orders, board: &Board, fail: &str) -> End {
        let status = self.spawn(orders, board, Some(fail)).wait().unwrap();
        self.ended(status, false)
    }

    /// Kills the recovery again and again, each time a little later, until one comes to its end.
    pub fn chain(&mut self, orders: &Orders, board: &Board, step: u64) -> Vec<String> {
        let orders = Orders { mode: "open", ..orders.clone() };
        let mut at = 1 + self.rng.below(step);
        let mut points = Vec::new();
        while let End::Killed(point) = self.run(&orders, board, &format!("*:{at}")) {
            points.push(point);
            at += 1 + self.rng.below(step);
        }
        points
    }
}
