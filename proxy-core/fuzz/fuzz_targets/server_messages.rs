#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pinion_fuzz::server_messages::run(data));
