/* A pool of threads that lives as long as the process, apart from torch's own.

   The workers sleep between calls. A caller never waits for a worker that has not started: it does
   all the work that nobody claimed, and waits only for those that are in the middle of some. */

#include <pthread.h>
#include <signal.h>

#include "sparse_kernels.h"

#if HAS_X86_VARIANTS
#include <xmmintrin.h>
#endif

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER; /* held by the caller being served */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;  /* guards what follows */
static pthread_cond_t begin = PTHREAD_COND_INITIALIZER;
static pthread_cond_t end = PTHREAD_COND_INITIALIZER;
static int size, wanted, active;
static void (*current_run)(void *);
static void *current_argument;
static unsigned rounding;

/* How denormals are treated is a setting of each thread; results must not depend on who computes
   them, so that workers take over the caller's. */
static unsigned get_rounding(void) {
#if HAS_X86_VARIANTS
    return _mm_getcsr();
#else
    return 0;
#endif
}

static void set_rounding(unsigned value) {
#if HAS_X86_VARIANTS
    _mm_setcsr(value);
#else
    (void)value;
#endif
}

static void *work(void *unused) {
    (void)unused;
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (wanted == 0)
            pthread_cond_wait(&begin, &mutex);
        wanted--;
        active++;
        void (*run)(void *) = current_run;
        void *argument = current_argument;
        set_rounding(rounding);
        pthread_mutex_unlock(&mutex);
        run(argument);
        pthread_mutex_lock(&mutex);
        if (--active == 0)
            pthread_cond_signal(&end);
    }
    return NULL;
}

/* A child has none of its parent's threads, and locks in the state that they were in. */
static void forget(void) {
    pthread_mutex_init(&in_use, NULL);
    pthread_mutex_init(&mutex, NULL);
    pthread_cond_init(&begin, NULL);
    pthread_cond_init(&end, NULL);
    size = wanted = active = 0;
}

static void prepare(void) { pthread_atfork(NULL, NULL, forget); }

/* Start workers until there are `count`, or as many as the system gives. */
static void grow(int count) {
    sigset_t all, before;
    sigfillset(&all);
    /* Workers inherit a mask of all signals: those of the process are for its other threads. */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (pthread_t thread; size < count; size++)
        if (pthread_create(&thread, &attributes, work, NULL) != 0)
            break;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void pool_run(void (*run)(void *), void *argument, int threads) {
    pthread_once(&once, prepare);
    if (threads < 2 || pthread_mutex_trylock(&in_use) != 0) {
        run(argument);
        return;
    }
    pthread_mutex_lock(&mutex);
    if (size < threads - 1)
        grow(threads - 1);
    current_run = run;
    current_argument = argument;
    rounding = get_rounding();
    wanted = threads - 1 < size ? threads - 1 : size;
    pthread_cond_broadcast(&begin);
    pthread_mutex_unlock(&mutex);
    run(argument);
    pthread_mutex_lock(&mutex);
    wanted = 0;
    while (active > 0)
        pthread_cond_wait(&end, &mutex);
    pthread_mutex_unlock(&mutex);
    pthread_mutex_unlock(&in_use);
}
