#!/usr/bin/env python3
"""ChaCha8 written down once more, to check the random streams of crates/backends/src/local/random.rs.

Prints the draws that the unit test there expects. RFC 8439 describes the cipher (with 20 rounds and a 32-bit counter;
here 8 rounds and, as in Bernstein's original, a 64-bit counter and a 64-bit nonce of zeros).
"""
import struct

MASK = 0xFFFFFFFF


def rotl(x, n):
    return ((x << n) | (x >> (32 - n))) & MASK


def quarter(s, a, b, c, d):
    for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = (s[x] + s[y]) & MASK
        s[z] = rotl(s[z] ^ s[x], n)


def block(key, counter, rounds):
    state = list(struct.unpack("<4I", b"expand 32-byte k")) + list(struct.unpack("<8I", key))
    state += [counter & MASK, counter >> 32, 0, 0]
    work = list(state)
    for _ in range(rounds // 2):
        for i in range(4):
            quarter(work, i, i + 4, i + 8, i + 12)
        for i in range(4):
            quarter(work, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return [(a + b) & MASK for a, b in zip(work, state)]


def uniform(seed, row, sample, step):
    words = block(struct.pack("<QQI", seed, row, sample) + b"vgen.sample1", step, 8)
    return ((words[0] | words[1] << 32) >> 11) / (1 << 53)


def main():
    # The first block of the all-zero key with 20 rounds is well known.
    known = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert struct.pack("<16I", *block(bytes(32), 0, 20)).hex().startswith(known)
    for where in ((0, 0, 0, 0), (0, 0, 0, 1), (42, 7, 3, 1000), (2**64 - 1, 1 << 40, 2, 5)):
        print(where, repr(uniform(*where)))


if __name__ == "__main__":
    main()
