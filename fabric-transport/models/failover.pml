/*
 * One direction of a session over two links: sequence numbers, acknowledgement by count, and
 * sending again on the other link (docs/fabric-protocol.md: rules 1, 3 and 5 of section 4, and
 * what section 6 leaves to failover).
 *
 * Rule of the sender: it sends on one link and keeps each frame until it is acknowledged. When it
 * gives that link up it sends on another what it keeps, in order and before anything new. What is
 * acknowledged on a link counts frames of that link from 0, and only while the link is not given
 * up. Rule of the receiver: it takes the next number and nothing else; older ones are duplicates
 * and are dropped, newer ones are an error. It counts both.
 *
 * A link may break: what is on it is lost, all or the later part. It may fall silent, with room
 * for some frames more, and heal later: then what was on it arrives, though the sender has long
 * given it up. Either end may give it up without the other. A link that both ends have given up
 * is made anew, empty and with counts of 0.
 *
 * Numbers are modulo SEQUENCES (2^32 in the protocol). They are told apart as long as no frame
 * stays on a link while half of them are used, which `is_fresh` demands: a link that is given up has
 * to be closed, or drained, before 2^31 further frames.
 *
 * Checked: exactly 0, 1, 2, ... is delivered, nothing is acknowledged that was not received, and
 * with a bounded number of failures everything is delivered and acknowledged.
 *
 * BUG_1: what is kept is not sent again.
 * BUG_2: a new frame goes before those that are sent again.
 * BUG_3: the receiver takes older frames.
 * BUG_4: the count of a link goes on when it is made anew.
 * BUG_5: the receiver does not count duplicates.
 * BUG_6: frames are sent again on the new link from the one after the oldest.
 * BUG_7: a link that was given up may keep its frames for any time.
 */
#define SEQUENCES 8
#define COUNTS 4   /* of acknowledgement, modulo */
#define KEPT_MAX 2 /* frames not acknowledged */
#define FRAMES 10  /* in all: numbers wrap */
#ifdef LIVENESS
#define FAILURES 2 /* fairness multiplies the states */
#else
#define FAILURES 3
#endif
#define ROOM 2     /* frames on a link */
#define NONE 2

/* The absolute number is not on the wire. It is what the claims are about. */
chan frames[2] = [ROOM] of { byte /* number modulo */, byte /* absolute */ };
chan acks[2] = [1] of { byte };

bool sender_up[2] = true;
bool receiver_up[2] = true;
bool broken[2];
bool silent[2];
byte failures;

byte active_link;
byte oldest;   /* kept, absolute */
byte cursor;   /* the next to send on the active link */
byte next;     /* the next new one */
byte sent_count[2], acked_count[2];   /* the sender's, modulo COUNTS */

byte delivered;
byte received_count[2], said_count[2];

inline is_fresh(l, result) {
    if
#ifdef BUG_7
    :: true -> result = true
#else
    :: len(frames[l]) > 0 -> frames[l] ? <number, absolute>; result = next - absolute < SEQUENCES / 2
    :: else -> result = true
#endif
    fi
}

active proctype Sender() {
    byte number, absolute;
    bool fresh0, fresh1;
end:
    do
    :: atomic {
        active_link != NONE && sender_up[active_link] && len(frames[active_link]) < ROOM &&
        cursor < next ->
        frames[active_link] ! cursor % SEQUENCES, cursor;
        cursor++;
        sent_count[active_link] = (sent_count[active_link] + 1) % COUNTS }
    :: atomic {
        active_link != NONE && sender_up[active_link] && len(frames[active_link]) < ROOM &&
#ifdef BUG_2
        next < FRAMES && next - oldest < KEPT_MAX ->
#else
        cursor == next && next < FRAMES && next - oldest < KEPT_MAX ->
#endif
        is_fresh(0, fresh0);
        is_fresh(1, fresh1);
        if
        :: fresh0 && fresh1 ->
            frames[active_link] ! next % SEQUENCES, next;
#ifdef BUG_2
            if
            :: cursor == next -> cursor++
            :: else
            fi;
            next++;
#else
            next++;
            cursor++;
#endif
            sent_count[active_link] = (sent_count[active_link] + 1) % COUNTS
        :: else
        fi;
        number = 0; absolute = 0; fresh0 = false; fresh1 = false }
    /* The link is given up: to another, if there is one. */
    :: atomic {
        active_link != NONE && !sender_up[active_link] -> active_link = NONE }
    :: atomic {
        active_link == NONE && (sender_up[0] || sender_up[1]) ->
        if
        :: sender_up[0] -> active_link = 0
        :: sender_up[1] -> active_link = 1
        fi;
#if defined(BUG_1)
        cursor = next
#elif defined(BUG_6)
        cursor = (oldest < next -> oldest + 1 : oldest)
#else
        cursor = oldest
#endif
        }
    od
}

/* One process for each link and end, so that fairness lets each go on. */
active [2] proctype Receiver() {
    byte link = _pid - 1;
    byte number, absolute, ahead;
end:
    do
    :: atomic {
        receiver_up[link] && !silent[link] && len(frames[link]) > 0 ->
        frames[link] ? number, absolute;
        ahead = (number + SEQUENCES - delivered % SEQUENCES) % SEQUENCES;
        if
#ifdef BUG_3
        :: ahead == 0 || ahead >= SEQUENCES / 2 ->
#else
        :: ahead == 0 ->
#endif
            assert(absolute == delivered);
            delivered++;
            received_count[link] = (received_count[link] + 1) % COUNTS
        :: else ->
            assert(ahead >= SEQUENCES / 2);
            assert(absolute < delivered);
#ifndef BUG_5
            received_count[link] = (received_count[link] + 1) % COUNTS
#endif
        fi;
        number = 0; absolute = 0; ahead = 0 }
    od
}

active [2] proctype Acknowledge() {
    byte link = _pid - 3;
end:
    do
    :: atomic {
        receiver_up[link] && said_count[link] != received_count[link] && len(acks[link]) < 1 ->
        acks[link] ! received_count[link];
        said_count[link] = received_count[link] }
    od
}

active [2] proctype Acknowledged() {
    byte link = _pid - 5;
    byte count;
end:
    do
    :: atomic {
        sender_up[link] && active_link == link && !silent[link] && len(acks[link]) > 0 ->
        acks[link] ? count;
        count = (count + COUNTS - acked_count[link]) % COUNTS;
        assert(count <= (sent_count[link] + COUNTS - acked_count[link]) % COUNTS);
        acked_count[link] = (acked_count[link] + count) % COUNTS;
        oldest = oldest + count;
        assert(oldest <= delivered && oldest <= next);
        count = 0 }
    od
}

inline lose(c) {
    do
    :: len(c) > 0 -> c ? _, _
    :: else -> break
    od
}

/* What happens to a link, and what its ends make of that. */
active [2] proctype Link() {
    byte link = _pid - 7;
end:
    do
    :: atomic { failures < FAILURES && sender_up[link] && receiver_up[link] && !broken[link] &&
        !silent[link] -> failures++; broken[link] = true }
    :: atomic { failures < FAILURES && sender_up[link] && receiver_up[link] && !broken[link] &&
        !silent[link] -> failures++; silent[link] = true }
    :: atomic { silent[link] -> silent[link] = false }
    /* An end that has waited for long enough closes the link; the other learns of it, or waits
     * as long, or reads before that what was on its way. */
    :: atomic { sender_up[link] && (silent[link] || broken[link]) ->
        sender_up[link] = false; broken[link] = true;
        do
        :: len(acks[link]) > 0 -> acks[link] ? _
        :: else -> break
        od }
    :: atomic { receiver_up[link] && (silent[link] || broken[link]) ->
        receiver_up[link] = false; broken[link] = true;
        lose(frames[link]) }
    :: atomic { !sender_up[link] && !receiver_up[link] && active_link != link ->
        lose(frames[link]);
        do
        :: len(acks[link]) > 0 -> acks[link] ? _
        :: else -> break
        od;
#ifndef BUG_4
        received_count[link] = 0;
#endif
        said_count[link] = 0;
        sent_count[link] = 0; acked_count[link] = 0;
        broken[link] = false; silent[link] = false;
        sender_up[link] = true; receiver_up[link] = true }
    od
}

#define all_there (delivered == FRAMES && oldest == FRAMES)
ltl everything_arrives { <> all_there }
