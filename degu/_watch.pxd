# How the threads of a pool, one of which leads, call one another. It is in C, as they
# wait without the interpreter's lock. Like _system.pxd this becomes a part of the module
# that takes from it, _pool.pyx.

cdef extern from *:
    """
    #ifdef __linux__
    #include <errno.h>
    #include <pthread.h>
    #include <time.h>

    #define TICK 1000000 /* nanoseconds after which the deputy looks at the leader */
    #define QUIET_TICKS 8 /* ticks without a request after which it sleeps */
    #define LOAD(of) __atomic_load_n(&(of), __ATOMIC_SEQ_CST)
    #define STORE(to, value) __atomic_store_n(&(to), (value), __ATOMIC_SEQ_CST)

    /* A thread of a pool that waits to be called, without the interpreter's lock. */
    struct degu_follower {
        pthread_cond_t turn;
        unsigned long thread, seen;
        int called;
        struct degu_follower *next;
    };

    /* What the threads of a pool tell each other without the interpreter's lock. */
    struct degu_watch {
        pthread_mutex_t lock;
        struct degu_follower *deputy;
        unsigned long turns; /* of the leader */
        int waiting; /* the leader, for a request */
        int asleep; /* the deputy, until the leader has one */
    };

    static void degu_init(struct degu_watch *watch) {
        pthread_mutex_init(&watch->lock, NULL);
        watch->deputy = NULL;
        watch->turns = 0;
        watch->waiting = watch->asleep = 0;
    }

    static void degu_prepare(struct degu_follower *me, unsigned long thread) {
        pthread_condattr_t monotonic;
        pthread_condattr_init(&monotonic);
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        pthread_cond_init(&me->turn, &monotonic);
        pthread_condattr_destroy(&monotonic);
        me->thread = thread;
        me->called = 0;
    }

    static void degu_finish(struct degu_follower *me) {
        pthread_cond_destroy(&me->turn);
    }

    /* Wait to be called; whoever is the deputy also for a leader that stalls. */
    static void degu_follow(struct degu_watch *watch, struct degu_follower *me) {
        struct timespec at;
        int quiet = 0, late = 0;
        pthread_mutex_lock(&watch->lock);
        while (!me->called && !late) {
            me->seen = LOAD(watch->turns);
            if (watch->deputy != me) {
                pthread_cond_wait(&me->turn, &watch->lock);
            } else if (quiet < QUIET_TICKS) {
                clock_gettime(CLOCK_MONOTONIC, &at);
                at.tv_nsec += TICK;
                if (at.tv_nsec >= 1000000000) {
                    at.tv_nsec -= 1000000000;
                    at.tv_sec++;
                }
                if (pthread_cond_timedwait(&me->turn, &watch->lock, &at) == ETIMEDOUT) {
                    quiet = LOAD(watch->turns) == me->seen ? quiet + 1 : 0;
                    late = quiet && !LOAD(watch->waiting);
                }
            } else {
                STORE(watch->asleep, 1);
                if (LOAD(watch->waiting)) pthread_cond_wait(&me->turn, &watch->lock);
                STORE(watch->asleep, 0);
                quiet = 0;
            }
        }
        pthread_mutex_unlock(&watch->lock);
    }

    static void degu_call(struct degu_watch *watch, struct degu_follower *one) {
        pthread_mutex_lock(&watch->lock);
        if (watch->deputy == one) watch->deputy = NULL;
        one->called = 1;
        pthread_cond_signal(&one->turn);
        pthread_mutex_unlock(&watch->lock);
    }

    static void degu_appoint(struct degu_watch *watch, struct degu_follower *one) {
        pthread_mutex_lock(&watch->lock);
        watch->deputy = one;
        if (one) pthread_cond_signal(&one->turn);
        pthread_mutex_unlock(&watch->lock);
    }

    static void degu_count(struct degu_watch *watch) {
        __atomic_add_fetch(&watch->turns, 1, __ATOMIC_RELAXED);
    }

    static void degu_begin_waiting(struct degu_watch *watch) {
        STORE(watch->waiting, 1);
    }

    static void degu_end_waiting(struct degu_watch *watch) {
        STORE(watch->waiting, 0);
        if (LOAD(watch->asleep)) {
            pthread_mutex_lock(&watch->lock);
            if (watch->deputy) pthread_cond_signal(&watch->deputy->turn);
            pthread_mutex_unlock(&watch->lock);
        }
    }
    #else  /* no pool ever forms there */
    struct degu_follower {
        unsigned long thread, seen;
        int called;
        struct degu_follower *next;
    };
    struct degu_watch { struct degu_follower *deputy; unsigned long turns; int waiting; };
    #define degu_init(watch)
    #define degu_prepare(me, ident)
    #define degu_finish(me)
    #define degu_follow(watch, me)
    #define degu_call(watch, one)
    #define degu_appoint(watch, one)
    #define degu_count(watch)
    #define degu_begin_waiting(watch)
    #define degu_end_waiting(watch)
    #endif
    """
    struct Follower "degu_follower":
        unsigned long thread
        unsigned long seen
        int called
        Follower *next
    struct Watch "degu_watch":
        Follower *deputy
        unsigned long turns
        int waiting
    void init_watch "degu_init"(Watch *watch) nogil
    void prepare_follower "degu_prepare"(Follower *me, unsigned long thread) nogil
    void finish_follower "degu_finish"(Follower *me) nogil
    void follow "degu_follow"(Watch *watch, Follower *me) nogil
    void call_follower "degu_call"(Watch *watch, Follower *one) nogil
    void appoint "degu_appoint"(Watch *watch, Follower *one) nogil
    void count_turn "degu_count"(Watch *watch) nogil
    void begin_waiting "degu_begin_waiting"(Watch *watch) nogil
    void end_waiting "degu_end_waiting"(Watch *watch) nogil
