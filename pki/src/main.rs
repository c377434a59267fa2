//! `orimono-pki`: a small certificate authority for the hosts and directors of a fabric.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 wrong usage.
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use pki::Order;

/// Makes the certificates that hosts and directors show each other on tls: links.
#[derive(Debug, Parser)]
#[command(name = "orimono-pki", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a CA: ca.pem, which every host and director needs, and ca.key, which stays here
    Init {
        /// Folder of the CA
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make NAME.pem and NAME.key; those that are there are replaced
    Issue {
        /// Folder of the CA
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The host or director, as in the lab file
        #[arg(value_name = "NAME")]
        name: String,
        /// Days that the certificate is valid
        #[arg(long, value_name = "N", default_value_t = 365,
              value_parser = clap::value_parser!(i64).range(1..=pki::CA_DAYS))]
        days: i64,
        /// An address that other programs may reach it at; links need none
        #[arg(long, value_name = "ADDR")]
        ip: Vec<IpAddr>,
    },
    /// Print names, validity and fingerprint of the certificates in FILE
    Show {
        /// A .pem file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error closed there is nobody to tell.
            drop(writeln!(std::io::stderr(), "orimono-pki: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match command {
        Command::Init { dir } => {
            pki::init(&dir)?;
            writeln!(out, "{}", dir.join("ca.pem").display())?;
        }
        Command::Issue {
            dir,
            name,
            days,
            ip,
        } => {
            let order = Order {
                addresses: ip,
                ..Order::new(&name, days)
            };
            let issued = pki::issue(&dir, &order)?;
            writeln!(out, "{}\n{}", issued.cert.display(), issued.key.display())?;
        }
        Command::Show { file } => {
            for described in pki::show(&file)? {
                writeln!(out, "{described}")?;
            }
        }
    }
    Ok(())
}
