// What this machine's libstdc++ and glibc have and those of manylinux_2_28 lack. Linked into wheels
// only, and hidden there.
#include <exception>
#include <new>

extern "C" {
char __libc_single_threaded;  // glibc 2.32: never said, so reference counts are always atomic
void copy_exception(void* to, const void* from);
void destroy_exception(void* exception);

// glibc keeps atexit in a static part, which the stubs of the shared one do not have.
extern void* __dso_handle;
int __cxa_atexit(void (*call)(void*), void* argument, void* module);
int atexit(void (*call)()) {
    return __cxa_atexit(reinterpret_cast<void (*)(void*)>(call), nullptr, &__dso_handle);
}
}

// The whole copy and destruction, which every libstdc++ exports; newer headers inline them and call
// the two steps below. The version keeps the linker from taking an inlined copy, which would
// recurse.
asm(".symver copy_exception, _ZNSt15__exception_ptr13exception_ptrC1ERKS0_@CXXABI_1.3.3");
asm(".symver destroy_exception, _ZNSt15__exception_ptr13exception_ptrD1Ev@CXXABI_1.3.3");

namespace std {

void __throw_bad_array_new_length() { throw bad_array_new_length(); }

void __exception_ptr::exception_ptr::_M_addref() noexcept {
    alignas(exception_ptr) unsigned char copy[sizeof(exception_ptr)];
    copy_exception(copy, this);
}

void __exception_ptr::exception_ptr::_M_release() noexcept { destroy_exception(this); }

}  // namespace std
