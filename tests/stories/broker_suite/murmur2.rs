use std::io::Write;
use std::process::Stdio;

use kafka_http_wrapper::broker::partitioner::murmur2;

use crate::harness::jars::{Edition, java};

/// A Java program that reads keys in hexadecimal digits, one a line, and prints the murmur2 hash of each.
const JAVA_MURMUR2: &str = r"
    import java.io.*;
    import java.util.HexFormat;
    public class Murmur2 {
        public static void main(String[] arguments) throws IOException {
            var lines = new BufferedReader(new InputStreamReader(System.in));
            for (String line; (line = lines.readLine()) != null; ) {
                byte[] key = HexFormat.of().parseHex(line);
                System.out.println(org.apache.kafka.common.utils.Utils.murmur2(key));
            }
        }
    }";

#[test]
fn murmur2_agrees_with_the_java_client() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("Murmur2.java");
    std::fs::write(&source, JAVA_MURMUR2).expect("a file in a temporary folder");
    // All lengths from 1 to 300 cover every remainder modulo 4, and the bytes include values above 127.
    let keys: Vec<Vec<u8>> =
        (1..=300_usize).map(|length| (0..length).map(|place| (place * 167 + length * 59) as u8).collect()).collect();
    let hex = |key: &Vec<u8>| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let input: String = keys.iter().map(hex).collect();
    let mut command = java(Edition::WithZooKeeper, ["-Xmx256m", "-XX:TieredStopAtLevel=1"]);
    command.arg(&source).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::null()).spawn().expect("java is installed");
    let mut stdin = child.stdin.take().expect("it is piped");
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("java ends");
    writing.join().expect("it does not panic").expect("java reads all keys");
    assert!(output.status.success(), "{}", output.status);
    let hashes: Vec<i32> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().expect("one number a line")).collect();
    let hashes_here: Vec<i32> = keys.iter().map(|key| murmur2(key).cast_signed()).collect();
    assert_eq!(hashes_here, hashes);
}
